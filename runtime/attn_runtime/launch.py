# SPDX-License-Identifier: Apache-2.0
"""A planned call as bytes: the arguments are packed once, and a repeated call writes addresses."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from attn_codegen import struct_layout
from attn_codegen.config import Cache
from attn_runtime.call_buffer import CACHE_ARRAYS, CallBuffer, Place, cache_fields
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.plan import Plan
from attn_runtime.ranks import Merge
from attn_runtime.streams import stream_handle

ARRAYS: Final = (
    "q",
    *CACHE_ARRAYS,
    "cu_q_len",
    "cu_k_len",
    "finished",
    "sinks",
    "cu_rows",
    "offset_q",
    "k_new",
    "v_new",
    "out",
    "lse",
    "workspace",
)
"""The array arguments of a call, in the order in which `Launch.run` takes their addresses."""

_COMMON: Final = (
    *("q", "cu_q_len", "cu_k_len", "finished", "sinks", "offset_q", "out", "lse"),
    *("k_scale", "v_scale", "k_new", "v_new"),
)
_FIELDS: Final = {"k_new": "k", "v_new": "v"}
"""What AttentionParams calls an array, where that is not the argument's name."""
_IN_WORKSPACE: Final = ("partial_O", "partial_ML", "cp_O", "cp_ML")
_OUT: Final = ARRAYS.index("out")
_MERGE_AT: Final = {name: at for name, _, at in struct_layout.leaves("Arguments")}["plan.merge"]


class Exchange(Protocol):
    """What a call needs of the group whose ranks share its keys: work enqueued on a stream."""

    def gather(self, first: int, floats: int, stream: int) -> None:
        """Bring the parts of all ranks together: `floats` of each, in order from address `first`
        on, where this rank's is in its place."""

    def finish(self, out: int, elements: int, dtype: str, stream: int) -> None:
        """What follows the merge: `out` is the address of this rank's output."""

    def side_stream(self) -> int:
        """A stream for what is exchanged while a kernel runs."""


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call but for its addresses: the kernels, how it is cut, and the numbers among its
    arguments."""

    kernel: Kernel
    reduction: Kernel
    plan: Plan
    cache: Cache
    values: Values
    exchange: Exchange | None = None


class Launch:
    """One call, ready but for its addresses. Belongs to one thread: all runs share its buffer."""

    def __init__(self, call: PlannedCall) -> None:
        plan, values = call.plan, call.values
        self._plan, self._exchange = plan, call.exchange
        self._is_part = int(values.get("cp_size", 1)) > 1
        self._rank = int(values.get("cp_rank", 0))
        self._elements = math.prod(
            int(values.get(name, 1)) for name in ("token_num", "num_heads", "size_per_head_v")
        )
        self._kernel, self._reduction = call.kernel, call.reduction
        pad = max(one.function.argument_offset for one in (call.kernel, call.reduction))
        places = _places(call.cache, _workspace_offsets(plan, self._is_part))
        self._buffer = CallBuffer(self._packed(plan, values), ARRAYS, places, pad)
        # PyCUDA copies the whole parameter space; the driver follows an array of addresses.
        self._space = self._space_of(call.kernel)
        self._reduction_space = self._space_of(call.reduction)
        self._start = self._starter()
        tile = call.reduction.tiling
        self._reduce = call.reduction.function.launcher(
            plan.reduce_grid_x, tile.threads, tile.shared_bytes, self._buffer.parameters
        )

    def _packed(self, plan: Plan, values: Values) -> bytes:
        """The arguments of the kernel, 0 where an address belongs."""
        return struct.pack(struct_layout.struct_format("Arguments"), *_fields(plan, values))

    def _starter(self) -> Callable[[int], None]:
        """What launches the kernel on a stream."""
        plan = self._plan
        return self._kernel.function.launcher(
            plan.grid_x, plan.threads, plan.shared_bytes, self._buffer.parameters
        )

    def _space_of(self, kernel: Kernel) -> memoryview:
        """The parameter space of a kernel: it ends with the struct."""
        return memoryview(self._buffer.bytes)[self._buffer.pad - kernel.function.argument_offset :]

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """Launch on any stream, by its handle; the context must be current. The addresses are
        those of ARRAYS, 0 for none. Raises ArgumentError for one that is not aligned."""
        self.compute(addresses, stream)
        exchange = self._exchange
        if exchange is not None and self._plan.grid_x:
            exchange.gather(*self.parts(addresses), stream)
            self.merge_ranks(stream)
            dtype = self._kernel.config.dtype.value
            exchange.finish(addresses[_OUT], self._elements, dtype, stream)

    def compute(self, addresses: Sequence[int], stream: int) -> None:
        """The kernel, and the merge of its splits: into the output or, where keys are spread over
        ranks, into this rank's part."""
        self._write(addresses)
        plan = self._plan
        if plan.grid_x:
            self._start(stream)
            self._merge_splits(stream)

    def parts(self, addresses: Sequence[int]) -> tuple[int, int]:
        """Where the parts of all ranks begin, and the floats of each."""
        plan = self._plan
        # A part begins with its output, or is the (max, sum) alone.
        own = addresses[-1] + min(plan.cp_O_offset, plan.cp_ML_offset)
        return own - 4 * self._rank * plan.cp_stride, plan.cp_stride

    def merge_ranks(self, stream: int) -> None:
        """What the ranks have left, into the output; behind `compute`."""
        self._merge(Merge.RANKS, stream)

    def _merge_splits(self, stream: int) -> None:
        plan = self._plan
        if not self._is_part:
            if plan.reduce_grid_x:
                self._reduce(stream)
        elif plan.split_cnt > 1:
            self._merge(Merge.SPLITS_TO_PART, stream)

    def _merge(self, merge: Merge, stream: int) -> None:
        struct.pack_into("<i", self._buffer.bytes, self._buffer.pad + _MERGE_AT, merge)
        self._reduce(stream)

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        if self._is_part:
            self.run(addresses, stream_handle(stream))
            return
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
        """Bring the arguments up to date."""
        self._buffer.write(addresses)


def packed_values(plan: Plan, values: Values) -> dict[str, int | float | bool]:
    """Every field of Arguments that is no address, by dotted name; what is left out is 0."""
    packed: dict[str, int | float | bool] = {
        f"params.{name}": value for name, value in values.items()
    }
    packed["params.max_split_k"] = plan.split_cnt
    packed["params.cp_stride"] = plan.cp_stride
    for name in _names("TilePlan"):
        if name != "merge":  # each launch of a reduction says what it merges
            packed[f"plan.{name}"] = getattr(plan, name)
    return packed


def _fields(plan: Plan, values: Values) -> list[int | float | bool]:
    packed = packed_values(plan, values)
    return [packed.get(name, 0) for name in _names("Arguments")]


@cache
def _names(struct_name: str) -> tuple[str, ...]:
    return struct_layout.field_names(struct_name)


def _places(kv_cache: Cache, workspace_offsets: Sequence[int]) -> dict[str, tuple[Place, ...]]:
    """Where the address of each array is written."""
    fields = {name: _FIELDS.get(name, name) for name in _COMMON} | cache_fields(kv_cache)
    if kv_cache is Cache.LINEAR:
        fields["cu_rows"] = "linear_iter_params.cu_rows"
    offsets = {name: offset for name, _, offset in struct_layout.leaves("Arguments")}
    places: dict[str, tuple[Place, ...]] = {
        name: ((offsets[f"params.{field}"], 0),) for name, field in fields.items()
    }
    parts = zip(_IN_WORKSPACE, workspace_offsets, strict=True)
    places["workspace"] = tuple((offsets[f"params.{part}"], offset) for part, offset in parts)
    return places


def _workspace_offsets(plan: Plan, is_part: bool) -> tuple[int, int, int, int]:
    """Where _IN_WORKSPACE lie, in bytes. A kernel that leaves no splits leaves this rank's part
    itself."""
    cp = (plan.cp_O_offset, plan.cp_ML_offset)
    if is_part and not plan.partial_O_bytes:
        return (*cp, *cp)
    return (0, plan.partial_ML_offset, *cp)
