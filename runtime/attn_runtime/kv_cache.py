# SPDX-License-Identifier: Apache-2.0
"""The arguments of the three kinds of KV cache, checked, as the fields of their iterators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from attn_codegen.config import AttentionConfig, Cache
from attn_runtime.array_view import ArrayView
from attn_runtime.checks import (
    Views,
    given,
    is_step,
    need_dense,
    need_dtype,
    need_int,
    need_ints,
    need_rows,
    need_shape,
    row_stride,
)
from attn_runtime.errors import ArgumentError

LAYER_ALIGNMENT: Final = 16
"""Bytes: layer_offset keeps rows aligned."""

_ARGUMENTS: Final = {
    Cache.LINEAR: ("k", "v", "cu_rows"),
    Cache.PAGED: ("k", "v", "block_table"),
    Cache.BLOCK: ("block_ptrs", "cu_block_nums", "block_len", "layer_offset"),
}
_ALL_ARGUMENTS: Final = tuple(sorted({name for names in _ARGUMENTS.values() for name in names}))

Values = dict[str, int | float | bool]
"""Fields of Arguments that are no addresses, by dotted name."""


@dataclass(frozen=True, slots=True)
class CacheCall:
    """What the cache of a call is checked against. `block_len` and `layer_offset` are None where
    they were left out."""

    config: AttentionConfig
    num_kv_heads: int
    batch_size: int
    views: Views
    block_len: int | None = None
    layer_offset: int | None = None


class CacheFields(NamedTuple):
    """The iterator's fields, and the most keys that one sequence can have."""

    values: Values
    capacity: int


def check_cache(call: CacheCall) -> CacheFields:
    """Check the arguments of the cache that the configuration reads, and refuse those of others."""
    cache = call.config.cache
    assert cache is not None  # attention reads a cache: a rule of the space
    numbers = {"block_len": call.block_len, "layer_offset": call.layer_offset}
    for name in _ALL_ARGUMENTS:
        value: Any = numbers[name] if name in numbers else call.views.get(name)
        if value is not None and name not in _ARGUMENTS[cache]:
            raise ArgumentError(
                name,
                f"{name} was given, but this Attention reads a {cache} cache, which takes "
                f"{', '.join(_ARGUMENTS[cache])}: leave it out, or build another Attention",
            )
    return _CHECKS[cache](call)


def _check_linear(call: CacheCall) -> CacheFields:
    """Rows back to back: [token_count, num_kv_heads, head_dim], any strides of tokens and heads."""
    config, k, v = call.config, given(call.views, "k"), given(call.views, "v")
    names, heads = ("token_count", "num_kv_heads"), call.num_kv_heads
    need_shape("k", k, (*names, "head_dim"), (None, heads, config.head_dim))
    need_shape("v", v, (*names, "head_dim_v"), (k.shape[0], heads, config.head_dim_v))
    values = _strides("linear_iter_params", ("token", "head"), call, k, v)
    values["linear_iter_params.token_count"] = k.shape[0]
    return CacheFields(values, k.shape[0])


def _check_paged(call: CacheCall) -> CacheFields:
    """Pools [block_count, block_len, num_kv_heads, head_dim], any strides, and a block table
    [batch_size, max_blocks], whose rows may be those of a wider one."""
    config, k, v = call.config, given(call.views, "k"), given(call.views, "v")
    names, heads = ("block_count", "block_len", "num_kv_heads"), call.num_kv_heads
    need_shape("k", k, (*names, "head_dim"), (None, None, heads, config.head_dim))
    need_shape("v", v, (*names, "head_dim_v"), (*k.shape[:2], heads, config.head_dim_v))
    block_len = need_int("k", k.shape[1], least=1, what="block_len, the second extent of k,")
    table = given(call.views, "block_table")
    need_shape("block_table", table, ("batch_size", "max_blocks"), (call.batch_size, None))
    need_dtype("block_table", table, ("i32",))
    width = table.strides[0] if call.batch_size > 1 else table.shape[1]
    if not is_step(table, 1, 1) or width < table.shape[1]:
        raise ArgumentError(
            "block_table",
            f"block_table has strides {list(table.strides)}: the entries of a row must lie back to "
            "back, and rows must not overlap; copy it",
        )
    values = _strides("paged_iter_params", ("block", "token", "head"), call, k, v)
    values |= {
        "paged_iter_params.max_blocks": need_int(
            "block_table", width, what="the distance of the rows of block_table"
        ),
        "paged_iter_params.block_count": need_int(
            "k", k.shape[0], what="block_count, the first extent of k,"
        ),
        "paged_iter_params.block_len": block_len,
    }
    return CacheFields(values, table.shape[1] * block_len)


def _check_block(call: CacheCall) -> CacheFields:
    """TurboMind's cache: addresses of blocks, [cu_block_nums[batch_size]] of them or more."""
    block_ptrs = given(call.views, "block_ptrs")
    need_shape("block_ptrs", block_ptrs, ("block_count",), (None,))
    need_dtype("block_ptrs", block_ptrs, ("i64", "u64"))
    need_dense("block_ptrs", block_ptrs, "[block_count]")
    cu_block_nums = given(call.views, "cu_block_nums")
    need_ints("cu_block_nums", cu_block_nums, ("batch_size + 1",), (call.batch_size + 1,))
    if call.block_len is None:
        raise ArgumentError("block_len", "block_len is missing: give the tokens of a block")
    block_len = need_int("block_len", call.block_len, least=1)
    offset = 0 if call.layer_offset is None else call.layer_offset
    if isinstance(offset, bool) or not 0 <= offset < 2**63 or offset % LAYER_ALIGNMENT:
        raise ArgumentError(
            "layer_offset",
            f"layer_offset is {offset} bytes: it must be a multiple of {LAYER_ALIGNMENT} from 0 "
            "on, so that every row is aligned",
        )
    values: Values = {
        "block_iter_params.layer_offset": int(offset),
        "block_iter_params.block_len": block_len,
    }
    return CacheFields(values, block_ptrs.shape[0] * block_len)


def _strides(
    prefix: str, axes: tuple[str, ...], call: CacheCall, k: ArrayView, v: ArrayView
) -> Values:
    values: Values = {}
    for name, view in (("k", k), ("v", v)):
        need_rows(name, view, call.config.dtype)
        for axis, word in enumerate(axes):
            values[f"{prefix}.{name}_{word}_stride"] = row_stride(name, view, axis)
    return values


_CHECKS: Final[dict[Cache, Callable[[CacheCall], CacheFields]]] = {
    Cache.LINEAR: _check_linear,
    Cache.PAGED: _check_paged,
    Cache.BLOCK: _check_block,
}
