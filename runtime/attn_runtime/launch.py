# SPDX-License-Identifier: Apache-2.0
"""A planned call as bytes: the arguments are packed once, and a repeated call writes addresses."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any, Final

from attn_codegen import params
from attn_codegen.config import Cache
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.plan import Plan

ARRAYS: Final = (
    "q",
    "k",
    "v",
    "block_table",
    "block_ptrs",
    "cu_block_nums",
    "cu_q_len",
    "cu_k_len",
    "finished",
    "out",
    "lse",
    "workspace",
)
"""The array arguments of a call, in the order in which `Launch.run` takes their addresses."""

_COMMON: Final = ("q", "cu_q_len", "cu_k_len", "finished", "out", "lse")
_OF_CACHE: Final = {
    Cache.LINEAR: ("linear_iter_params", ("k", "v")),
    Cache.PAGED: ("paged_iter_params", ("k", "v", "block_table")),
    Cache.BLOCK: ("block_iter_params", ("block_ptrs", "cu_block_nums")),
}
_SOURCES: Final = len(ARRAYS) + 1
ADDRESS_BYTES: Final = 8


class Launch:
    """One call, ready but for its addresses. Belongs to one thread: all runs share its buffer."""

    def __init__(
        self, kernel: Kernel, reduction: Kernel, plan: Plan, cache: Cache, values: Values
    ) -> None:
        self._plan = plan
        self._kernel, self._reduction = kernel, reduction
        packed = self._packed(plan, values)
        self._pad = max(kernel.function.argument_offset, reduction.function.argument_offset)
        self._buffer = bytearray(self._pad) + packed
        self._split_into_addresses(packed, cache)
        # PyCUDA copies the whole parameter space; the driver follows an array of addresses.
        self._space = self._space_of(kernel)
        self._reduction_space = self._space_of(reduction)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer)) + self._pad
        self._addresses = (ctypes.c_void_p * 1)(start)
        self._parameters = ctypes.addressof(self._addresses)

    def _packed(self, plan: Plan, values: Values) -> bytes:
        """The arguments of the kernel, 0 where an address belongs."""
        return struct.pack(params.struct_format("Arguments"), *_fields(plan, values))

    def _split_into_addresses(self, packed: bytes, cache: Cache) -> None:
        """A format that packs the addresses and, as bytes, the constants that lie between them."""
        layout, end = "<", 0
        picks: list[int] = []
        constants: list[bytes] = []
        for offset, source in sorted(_address_fields(cache)):
            if offset > end:
                layout += f"{offset - end}s"
                picks.append(_SOURCES + len(constants))
                constants.append(packed[end:offset])
            layout += "Q"
            picks.append(source)
            end = offset + ADDRESS_BYTES
        self._pack = struct.Struct(layout).pack_into
        self._pick = itemgetter(*picks)
        self._constants = tuple(constants)

    def _space_of(self, kernel: Kernel) -> memoryview:
        """The parameter space of a kernel: it ends with the struct."""
        return memoryview(self._buffer)[self._pad - kernel.function.argument_offset :]

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """Launch on any stream, by its handle; the context must be current. The addresses are
        those of ARRAYS, 0 for none."""
        self._write(addresses)
        plan, kernel = self._plan, self._kernel
        if plan.grid_x:
            kernel.function.launch(
                plan.grid_x, plan.threads, plan.shared_bytes, stream, self._parameters
            )
            self._reduce(stream)

    def _reduce(self, stream: int) -> None:
        plan, tile = self._plan, self._reduction.tiling
        if plan.reduce_grid_x:
            self._reduction.function.launch(
                plan.reduce_grid_x, tile.threads, tile.shared_bytes, stream, self._parameters
            )

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self._write(addresses)
        plan, kernel = self._plan, self._kernel
        if plan.grid_x:
            kernel.function.launch_on_own(
                plan.grid_x, plan.threads, plan.shared_bytes, stream, self._space
            )
        if plan.reduce_grid_x:
            tile = self._reduction.tiling
            self._reduction.function.launch_on_own(
                plan.reduce_grid_x, tile.threads, tile.shared_bytes, stream, self._reduction_space
            )

    def _write(self, addresses: Sequence[int]) -> None:
        partial_ML = addresses[-1] + self._plan.partial_ML_offset
        self._pack(self._buffer, self._pad, *self._pick((*addresses, partial_ML, *self._constants)))


def packed_values(plan: Plan, values: Values) -> dict[str, int | float | bool]:
    """Every field of Arguments that is no address, by dotted name; what is left out is 0."""
    packed: dict[str, int | float | bool] = {
        f"params.{name}": value for name, value in values.items()
    }
    packed["params.max_split_k"] = plan.split_cnt
    for name in _names("TilePlan"):
        if name != "merge":  # each launch of a reduction says what it merges
            packed[f"plan.{name}"] = getattr(plan, name)
    return packed


def _fields(plan: Plan, values: Values) -> list[int | float | bool]:
    packed = packed_values(plan, values)
    return [packed.get(name, 0) for name in _names("Arguments")]


@cache
def _names(struct_name: str) -> tuple[str, ...]:
    return params.field_names(struct_name)


@cache
def _address_fields(kv_cache: Cache) -> tuple[tuple[int, int], ...]:
    """(byte offset in Arguments, index into the sources) of each address that a call brings. The
    sources are ARRAYS, whose last is the workspace and so partial_O, then partial_ML."""
    owner, names = _OF_CACHE[kv_cache]
    fields = {name: f"params.{name}" for name in _COMMON}
    fields |= {name: f"params.{owner}.{name}" for name in names}
    fields["workspace"] = "params.partial_O"
    offsets = {name: offset for name, _, offset in params.leaves("Arguments")}
    found = [(offsets[field], ARRAYS.index(name)) for name, field in fields.items()]
    return (*found, (offsets["params.partial_ML"], len(ARRAYS)))
