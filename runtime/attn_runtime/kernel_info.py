# SPDX-License-Identifier: Apache-2.0
"""What a GPU says of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import AttentionConfig
from attn_runtime.driver import context_of_device
from attn_runtime.kernel import load


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """The twin of the C++ KernelInfo. Registers and bytes are of a thread, those of shared memory
    of a CTA; spill_bytes counts stores and loads."""

    name: str
    device: int
    device_name: str
    target: str
    sm_count: int
    threads: int
    warps: int
    shared_bytes: int
    registers: int
    local_bytes: int
    spill_bytes: int
    static_shared_bytes: int
    ctas_per_sm: int

    @property
    def warps_per_sm(self) -> int:
        """Warps that an SM holds at a time."""
        return self.warps * self.ctas_per_sm


def kernel_info(config: AttentionConfig, device: int = 0) -> KernelInfo:
    """Load a kernel on a GPU, compiled where it must be, and ask for its attributes.

    Raises what `attn_runtime.kernel.load` raises.
    """
    context = context_of_device(device)
    kernel = load(config, context)
    return KernelInfo(
        name=config.name,
        device=device,
        device_name=context.device.name,
        target=context.device.target,
        sm_count=context.device.sm_count,
        threads=kernel.tiling.threads,
        warps=kernel.tiling.warps,
        shared_bytes=kernel.tiling.shared_bytes,
        registers=kernel.function.registers,
        local_bytes=kernel.function.local_bytes,
        spill_bytes=kernel.build.spill_bytes,
        static_shared_bytes=kernel.function.static_shared_bytes,
        ctas_per_sm=kernel.limits.ctas_per_sm,
    )
