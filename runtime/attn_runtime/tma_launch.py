# SPDX-License-Identifier: Apache-2.0
"""A planned call of a kernel that reads by TMA: its tensor maps follow the addresses."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from attn_codegen import struct_layout
from attn_codegen.config import Dtype
from attn_runtime import map_encoder
from attn_runtime.counters import counters_of
from attn_runtime.errors import ArgumentError, DriverError
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Launch, PlannedCall
from attn_runtime.map_encoder import TENSOR_MAP_BYTES, RowsLayout
from attn_runtime.plan import Plan
from attn_runtime.streams import stream_handle
from attn_runtime.tensor_maps import RowsMap, maps_of

_OFFSETS: Final = {name: offset for name, _, offset in struct_layout.leaves("TmaArguments")}
_KEPT_MAPS: Final = 64
"""Encoded maps of an argument that are kept, 128 bytes each."""
_COUNTERS_AT: Final = _OFFSETS["params.counters"]


class _Map:
    """One tensor map of the arguments, encoded once for each address: allocators give the same few
    again and again."""

    __slots__ = ("_address", "_encoded", "_fixed", "_layout", "_offset", "_source", "argument")

    def __init__(self, rows: RowsMap, is_bf16: bool) -> None:
        self._layout = RowsLayout(is_bf16, rows.dims, rows.byte_strides, rows.box)
        self.argument = rows.argument
        self._source = ARRAYS.index(rows.argument)
        self._offset = _OFFSETS[rows.argument]
        self._fixed = rows.address
        self._address = 0
        self._encoded: dict[int, bytes] = {}

    def write(self, buffer: bytearray, start: int, addresses: Sequence[int]) -> None:
        """Bring the map of the argument up to date."""
        address = addresses[self._source] if self._fixed is None else self._fixed
        if address == self._address or not address:
            return
        encoded = self._encoded.get(address)
        if encoded is None:
            encoded = self._encode(address)
        begin = start + self._offset
        buffer[begin : begin + TENSOR_MAP_BYTES] = encoded
        self._address = address

    def _encode(self, address: int) -> bytes:
        try:
            encoded = map_encoder.tensor_map(self._layout, address)
        except DriverError as error:
            raise ArgumentError(
                self.argument,
                f"{self.argument} cannot be read by TMA ({error}): its strides must be positive "
                "multiples of 16 bytes below 2^40; copy it",
            ) from error
        if len(self._encoded) >= _KEPT_MAPS:
            self._encoded.clear()
        self._encoded[address] = encoded
        return encoded


class TmaLaunch(Launch):
    """One call of a persistent kernel. Belongs to one thread: all runs share its buffer."""

    def __init__(self, call: PlannedCall) -> None:
        kernel = call.kernel
        context = kernel.function.context
        self._ctas = min(call.plan.grid_x, context.device.sm_count * kernel.limits.ctas_per_sm)
        super().__init__(call)
        is_bf16 = kernel.config.dtype is Dtype.BF16
        self._maps = [
            _Map(rows, is_bf16)
            for rows in maps_of(kernel.config, kernel.tiling, call.plan, call.values)
        ]
        self._counters = counters_of(context)

    def _starter(self) -> Callable[[int], None]:
        """The kernel waits for the launch before it by itself."""
        plan = self._plan
        return self._kernel.function.launcher(
            self._ctas,
            plan.threads,
            plan.shared_bytes,
            self._buffer.parameters,
            # Ahead of a kernel that leaves a part, a gather may need multiprocessors (rounds.py).
            may_begin_early=not self._is_part,
            cluster=plan.cluster,
        )

    def _packed(self, plan: Plan, values: Values) -> bytes:
        packed = bytearray(struct_layout.size_of("TmaArguments"))
        common = super()._packed(plan, values)
        packed[: len(common)] = common
        group = int(values["num_heads"]) // int(values["num_kv_heads"])
        pack = min(group, plan.packed_heads)
        struct.pack_into("<i", packed, _OFFSETS["pack_heads"], pack)
        struct.pack_into("<i", packed, _OFFSETS["group_packs"], group // pack)
        return bytes(packed)

    def compute(self, addresses: Sequence[int], stream: int) -> None:
        """See Launch: the counter is that of the stream."""
        self._buffer.set_word(_COUNTERS_AT, self._counters.address(stream))
        super().compute(addresses, stream)

    def _write(self, addresses: Sequence[int]) -> None:
        if self._buffer.write(addresses) and self._plan.grid_x:
            for rows in self._maps:
                self._bring(rows, addresses)

    def _bring(self, rows: _Map, addresses: Sequence[int]) -> None:
        try:
            rows.write(self._buffer.bytes, self._buffer.pad, addresses)
        except ArgumentError:
            self._buffer.forget(rows.argument)  # its map is still that of another address
            raise

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self.run(addresses, stream_handle(stream))
