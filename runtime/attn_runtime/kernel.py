# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a kernel that is loaded on a device and ready to launch."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from attn_codegen import params, struct_layout
from attn_codegen.config import Arch, AttentionConfig
from attn_codegen.rules import is_valid
from attn_codegen.tile import Tiling
from attn_codegen.tiling import tiling
from attn_codegen.tuning import Tuning, shipped
from attn_runtime.compiler import Build
from attn_runtime.driver import Context, Device
from attn_runtime.errors import DeviceError
from attn_runtime.function import Function
from attn_runtime.kernel_folder import cubin_of
from attn_runtime.problem import KernelLimits

LEAST_CAPABILITY: Final = (8, 0)
HOPPER: Final = (9, 0)

_lock = threading.RLock()
_kernels: dict[tuple[int, AttentionConfig, Path | None], Kernel] = {}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel: its tile, its occupancy on the device, and what the compiler said. `plain`
    is the one for plain decode calls, `clusters` that of their CTAs in clusters, where the unit
    has them."""

    config: AttentionConfig
    tiling: Tiling
    limits: KernelLimits
    function: Function
    build: Build
    plain: Function | None = None
    clusters: Function | None = None


def on_device(config: AttentionConfig, device: Device) -> AttentionConfig:
    """The configuration in the best family for a device: Hopper's own where it has the kernel,
    otherwise the one that every device runs. Raises DeviceError when none serves it."""
    if device.capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        raise DeviceError(
            f"GPU {device.ordinal} ({device.name}) has compute capability "
            f"{device.capability[0]}.{device.capability[1]}: kernels are written for {least} "
            "and later; run on such a GPU (device= or CUDA_VISIBLE_DEVICES choose one)"
        )
    own = replace(config, arch=Arch.SM90)
    return own if device.capability == HOPPER and is_valid(own) else config


def nominal_limits(config: AttentionConfig, tuning: Tuning | None = None) -> KernelLimits:
    """The limits of a kernel that is not loaded: it has the CTAs per SM that it is compiled for.
    `tuning` says what its tile costs; left out, it is the one that comes with the package."""
    tile, cost = tiling(config), (tuning or shipped()).cost(config)
    return KernelLimits(
        cta_q=tile.cta_q,
        cta_s=tile.cta_s,
        ctas_per_sm=tile.ctas_per_sm,
        threads=tile.threads,
        shared_bytes=tile.shared_bytes,
        packed_heads=tile.packed_heads,
        tile_counters=int(tile.persistent),
        merged_splits=tile.merged_splits,
        cluster_ctas=tile.cluster_ctas,
        tile_ns=cost.tile_ns,
        step_ns=cost.step_ns,
    )


def load(config: AttentionConfig, context: Context, folder: Path | None = None) -> Kernel:
    """The kernel of a configuration on a device, compiled where it must be, loaded once. Of a
    `folder` of exported kernels it is taken as it is.

    Raises KernelFolderError, ToolchainError, CompileError, DriverError, or DeviceError when the
    device is too old or has too little shared memory.
    """
    key = (context.device.ordinal, config, folder)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = _load(config, context, folder)
    return found


def _load(config: AttentionConfig, context: Context, folder: Path | None) -> Kernel:
    tile = tiling(config)
    cubin = cubin_of(config, context.device.target, folder)
    function = Function(context, cubin.build.cubin, cubin.build.symbol)
    _check_arguments(config, function)
    _check_shared_memory(config, tile, function)
    function.opt_in(tile.shared_bytes)
    ctas = function.ctas_per_sm(tile.threads, tile.shared_bytes)
    if ctas < 1:
        raise DeviceError(
            f"{config.name} does not fit on {context.device.name}: a CTA takes {tile.threads} "
            f"threads of {function.registers} registers and {tile.shared_bytes} bytes of shared "
            "memory; take a smaller head_dim"
        )
    limits = replace(nominal_limits(config), ctas_per_sm=ctas)

    def entry(word: str, *, exists: bool) -> Function | None:
        if not exists:
            return None
        own = Function(context, cubin.build.cubin, f"{cubin.build.symbol}_{word}")
        own.opt_in(tile.shared_bytes)
        return own

    plain = entry("plain", exists=tile.plain)
    clusters = entry("clusters", exists=tile.cluster_ctas > 1)
    return Kernel(config, tile, limits, function, cubin.build, plain, clusters)


def _check_shared_memory(config: AttentionConfig, tile: Tiling, function: Function) -> None:
    device, needed = function.context.device, tile.shared_bytes + function.static_shared_bytes
    if needed > device.shared_per_block:
        raise DeviceError(
            f"{config.name} needs {needed} bytes of shared memory per CTA, and GPU "
            f"{device.ordinal} ({device.name}) has {device.shared_per_block}: take a smaller "
            "head_dim or tile (`attn-codegen show` gives the bytes), or a larger GPU"
        )


def _check_arguments(config: AttentionConfig, function: Function) -> None:
    """The struct that is packed here and the one that was compiled come from one declaration."""
    expected = struct_layout.size_of(params.arguments_of(config))
    if function.argument_bytes not in (0, expected):
        raise DeviceError(
            f"{function.symbol} takes {function.argument_bytes} bytes of arguments, and this "
            f"version packs {expected}: clear the cubin cache, or install one version of "
            "attn-codegen"
        )
