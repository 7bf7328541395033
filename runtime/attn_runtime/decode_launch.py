# SPDX-License-Identifier: Apache-2.0
"""A planned decode call: its arguments say how ranges are shared out, and it counts arrivals."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from attn_codegen import struct_layout
from attn_codegen.config import Arch
from attn_codegen.tiles_decode import DECODE_ROWS
from attn_runtime.counters import Counters, counter_block, counters_of
from attn_runtime.function import Function
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Launch, PlannedCall
from attn_runtime.plan import Plan
from attn_runtime.streams import stream_handle

_OFFSETS: Final = {name: offset for name, _, offset in struct_layout.leaves("DecodeArguments")}
_COUNTERS_AT: Final = _OFFSETS["params.counters"]
_RANGES: Final = {name: offset for name, offset in _OFFSETS.items() if name.startswith("ranges.")}


MOST_PLAIN_SEQUENCES: Final = 32
_OFFSET_Q, _K_NEW = ARRAYS.index("offset_q"), ARRAYS.index("k_new")


def may_be_plain(plan: Plan, values: Values, rows: int) -> bool:
    """Whether a call asks for nothing but the last tokens of few sequences, which see all keys
    before them, as far as its numbers say: a plain call has neither offset_q nor k_new, either. A
    tile of the fewest `rows` takes one token of each. The C++ twin is is_plain in
    attn/decode_template.cuh."""
    return (
        not values.get("window_size", 0)
        and values.get("cp_size", 1) == 1
        and values["batch_size"] <= MOST_PLAIN_SEQUENCES
        and plan.q_tiles == 1
        and (plan.cta_q == 1 or rows > DECODE_ROWS[0])
        and plan.ranges.columns == values["num_kv_heads"]
        and not plan.ranges.pieces
    )


class DecodeLaunch(Launch):
    """One call of a decode kernel. Belongs to one thread: all runs share its buffer."""

    def __init__(self, call: PlannedCall) -> None:
        super().__init__(call)
        self._start_any = self._start
        self._start_plain: Callable[[int], None] | None = None
        rows = call.kernel.tiling.cta_q
        if call.kernel.plain is not None and may_be_plain(call.plan, call.values, rows):
            self._start_plain = self._starter_of_plain(call.kernel.plain)
        self._counters: Counters | None = None
        if call.plan.counter_cnt:
            self._counters = counters_of(
                call.kernel.function.context, counter_block(call.plan.counter_cnt)
            )

    def _starter(self) -> Callable[[int], None]:
        """Hopper's kernels wait for the launch before them by themselves."""
        return self._starter_of(self._kernel.function)

    def _starter_of(self, function: Function, cluster: int = 1) -> Callable[[int], None]:
        plan = self._plan
        return function.launcher(
            plan.grid_x,
            plan.threads,
            plan.shared_bytes,
            self._buffer.parameters,
            may_begin_early=self._kernel.config.arch is Arch.SM90,
            cluster=cluster,
            is_balanced=True,
        )

    def _starter_of_plain(self, plain: Function) -> Callable[[int], None]:
        cluster, clusters = self._plan.cluster, self._kernel.clusters
        if cluster > 1 and clusters is not None:
            return self._starter_of(clusters, cluster)
        return self._starter_of(plain)

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
        if self._start_plain is not None:
            is_plain = not (addresses[_OFFSET_Q] or addresses[_K_NEW])
            self._start = self._start_plain if is_plain else self._start_any
        super().compute(addresses, stream)

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self.run(addresses, stream_handle(stream))
