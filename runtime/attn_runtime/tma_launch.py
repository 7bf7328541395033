# SPDX-License-Identifier: Apache-2.0
"""A planned call of a kernel that reads by TMA: its tensor maps follow the addresses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from attn_codegen import params
from attn_codegen.config import Cache, Dtype
from attn_runtime import driver
from attn_runtime.driver import RowsLayout
from attn_runtime.errors import ArgumentError, DriverError
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Exchange, Launch
from attn_runtime.plan import Plan
from attn_runtime.streams import stream_handle
from attn_runtime.tensor_maps import RowsMap, maps_of, section_of

_OFFSETS: Final = {name: offset for name, _, offset in params.leaves("TmaArguments")}


class _Map:
    """One tensor map of the arguments, encoded again when its address changes."""

    __slots__ = ("_address", "_argument", "_fixed", "_layout", "_offset", "_source")

    def __init__(self, rows: RowsMap, is_bf16: bool) -> None:
        self._layout = RowsLayout(is_bf16, rows.dims, rows.byte_strides, rows.box)
        self._argument = rows.argument
        self._source = ARRAYS.index(rows.argument)
        self._offset = _OFFSETS[rows.argument]
        self._fixed = rows.address
        self._address = 0

    def write(self, buffer: bytearray, start: int, addresses: Sequence[int]) -> None:
        """Bring the map of the argument up to date."""
        address = addresses[self._source] if self._fixed is None else self._fixed
        if address == self._address or not address:
            return
        try:
            encoded = driver.tensor_map(self._layout, address)
        except DriverError as error:
            raise ArgumentError(
                self._argument,
                f"{self._argument} cannot be read by TMA ({error}): its strides must be positive "
                "multiples of 16 bytes below 2^40; copy it",
            ) from error
        begin = start + self._offset
        buffer[begin : begin + driver.TENSOR_MAP_BYTES] = encoded
        self._address = address


class TmaLaunch(Launch):
    """One call of a persistent kernel. Belongs to one thread: all runs share its buffer."""

    def __init__(
        self,
        kernel: Kernel,
        reduction: Kernel,
        plan: Plan,
        cache: Cache,
        values: Values,
        exchange: Exchange | None = None,
    ) -> None:
        self._config, self._tile = kernel.config, kernel.tiling
        super().__init__(kernel, reduction, plan, cache, values, exchange)
        is_bf16 = kernel.config.dtype is Dtype.BF16
        self._maps = [
            _Map(rows, is_bf16) for rows in maps_of(kernel.config, self._tile, plan, values)
        ]
        context = kernel.function.context
        self._counters = driver.counters_of(context)
        self._counter_at = self._pad + _OFFSETS["params.counters"]
        self._ctas = min(plan.grid_x, context.device.sm_count * kernel.limits.ctas_per_sm)

    def _packed(self, plan: Plan, values: Values) -> bytes:
        packed = bytearray(params.size_of("TmaArguments"))
        common = super()._packed(plan, values)
        packed[: len(common)] = common
        section = section_of(self._config, values, plan)
        group = int(values["num_heads"]) // int(values["num_kv_heads"])
        struct.pack_into("<i", packed, _OFFSETS["section"], section)
        struct.pack_into("<i", packed, _OFFSETS["group_packs"], group // plan.packed_heads)
        return bytes(packed)

    def compute(self, addresses: Sequence[int], stream: int) -> None:
        """See Launch: tensor maps and counters come first."""
        self._write(addresses)
        if not self._plan.grid_x:
            return
        for rows in self._maps:
            rows.write(self._buffer, self._pad, addresses)
        struct.pack_into("<Q", self._buffer, self._counter_at, self._counters.address(stream))
        plan = self._plan
        self._kernel.function.launch(
            self._ctas, plan.threads, plan.shared_bytes, stream, self._parameters
        )
        self._merge_splits(stream)

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self.run(addresses, stream_handle(stream))
