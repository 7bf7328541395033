# SPDX-License-Identifier: Apache-2.0
"""A planned decode call: its arguments say how ranges are shared out, and it counts arrivals."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from attn_codegen import struct_layout
from attn_codegen.config import Arch
from attn_runtime.counters import Counters, counter_block, counters_of
from attn_runtime.kv_cache import Values
from attn_runtime.launch import Launch, PlannedCall
from attn_runtime.plan import Plan
from attn_runtime.streams import stream_handle

_OFFSETS: Final = {name: offset for name, _, offset in struct_layout.leaves("DecodeArguments")}
_COUNTERS_AT: Final = _OFFSETS["params.counters"]
_RANGES: Final = {name: offset for name, offset in _OFFSETS.items() if name.startswith("ranges.")}


class DecodeLaunch(Launch):
    """One call of a decode kernel. Belongs to one thread: all runs share its buffer."""

    def __init__(self, call: PlannedCall) -> None:
        super().__init__(call)
        self._counters: Counters | None = None
        if call.plan.counter_cnt:
            self._counters = counters_of(
                call.kernel.function.context, counter_block(call.plan.counter_cnt)
            )

    def _starter(self) -> Callable[[int], None]:
        """Hopper's kernels wait for the launch before them by themselves."""
        plan = self._plan
        return self._kernel.function.launcher(
            plan.grid_x,
            plan.threads,
            plan.shared_bytes,
            self._buffer.parameters,
            may_begin_early=self._kernel.config.arch is Arch.SM90,
        )

    def _packed(self, plan: Plan, values: Values) -> bytes:
        packed = bytearray(struct_layout.size_of("DecodeArguments"))
        common = super()._packed(plan, values)
        packed[: len(common)] = common
        for name, value in asdict(plan.ranges).items():
            struct.pack_into("<i", packed, _RANGES[f"ranges.{name}"], value)
        return bytes(packed)

    def compute(self, addresses: Sequence[int], stream: int) -> None:
        """See Launch: the counters are those of the stream."""
        if self._counters is not None:
            self._buffer.set_word(_COUNTERS_AT, self._counters.address(stream))
        super().compute(addresses, stream)

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self.run(addresses, stream_handle(stream))
