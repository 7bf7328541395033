# SPDX-License-Identifier: Apache-2.0
"""The arguments of the three kinds of KV cache, checked, as the fields of their iterators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Final, NamedTuple

from attn_codegen.config import AttentionConfig, Cache, KvDtype
from attn_runtime.array_view import ArrayView
from attn_runtime.checks import (
    ROW_CODES,
    Views,
    given,
    is_step,
    need_codes,
    need_dense,
    need_dtype,
    need_int,
    need_ints,
    need_rows,
    need_shape,
    pair_stride,
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
_PAIRS: Final = ("k_pairs", "v_pairs")
_SCALES: Final = ("k_scale", "v_scale")
_ALL_ARGUMENTS: Final = tuple(
    sorted({name for names in _ARGUMENTS.values() for name in names} | {*_PAIRS, *_SCALES})
)

KV_TYPE: Final = {KvDtype.SAME: 0, KvDtype.INT8: 1, KvDtype.INT4: 2, KvDtype.E4M3: 3}
"""The numbers of attn::KvType."""

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
    cache, kv_dtype = call.config.cache, call.config.kv_dtype
    assert cache is not None  # every mode that has arguments has a cache: a rule of the space
    names = arguments_of(call.config)
    numbers = {"block_len": call.block_len, "layer_offset": call.layer_offset}
    for name in _ALL_ARGUMENTS:
        value: Any = numbers[name] if name in numbers else call.views.get(name)
        if value is not None and name not in names:
            kind = f"a {cache}" if kv_dtype is KvDtype.SAME else f"an {kv_dtype} {cache}"
            raise ArgumentError(
                name,
                f"{name} was given, but the call reads {kind} cache, which takes "
                f"{', '.join(names)}: leave it out, or build another Attention",
            )
    fields = _CHECKS[cache](call)
    values = fields.values | {
        "kv_type": KV_TYPE[kv_dtype],
        "kv_scale_stride": _check_scales(call) if kv_dtype is KvDtype.E4M3 else 0,
    }
    return CacheFields(values, fields.capacity)


def arguments_of(config: AttentionConfig) -> tuple[str, ...]:
    """The arguments that describe the cache of a configuration."""
    assert config.cache is not None
    names: tuple[str, ...] = _ARGUMENTS[config.cache]
    if config.kv_dtype.has_pairs and config.cache is not Cache.BLOCK:
        names += _PAIRS
    return names + _SCALES if config.kv_dtype is KvDtype.E4M3 else names


def row_extent(config: AttentionConfig, head_dim: int) -> int:
    """Elements of the array that a row of the cache takes: int4 has two codes in a byte."""
    return head_dim // 2 if config.kv_dtype is KvDtype.INT4 else head_dim


def bytes_of(config: AttentionConfig, elements: int) -> int:
    """Bytes of so many elements of the cache."""
    if config.kv_dtype is KvDtype.SAME:
        return 2 * elements
    return row_extent(config, elements)


def _check_scales(call: CacheCall) -> int:
    """kv_scale_stride: 0 where K and V have one scale each (or none, which is 1), 1 for one of each
    KV head."""
    heads, steps = call.num_kv_heads, {}
    for name in _SCALES:
        view = call.views.get(name)
        if view is None:
            continue
        need_dtype(name, view, ("f32",))
        need_dense(name, view, "scales")
        if view.size not in (1, heads) or len(view.shape) > 1:
            raise ArgumentError(
                name,
                f"{name} has shape {list(view.shape)}: it must be one scale, or "
                f"[num_kv_heads] = [{heads}]",
            )
        steps[name] = int(view.size == heads and heads > 1)
    if len(set(steps.values())) > 1:
        raise ArgumentError(
            "v_scale",
            "k_scale and v_scale have different shapes: give one scale of each, or one of each "
            "KV head",
        )
    return max(steps.values(), default=0)


def _check_linear(call: CacheCall) -> CacheFields:
    """Rows back to back: [token_count, num_kv_heads, head_dim], any strides of tokens and heads."""
    k, v, heads = given(call.views, "k"), given(call.views, "v"), call.num_kv_heads
    names = ("token_count", "num_kv_heads")
    width, width_v = _extents(call.config)
    need_shape("k", k, (*names, "head_dim"), (None, heads, width))
    need_shape("v", v, (*names, "head_dim_v"), (k.shape[0], heads, width_v))
    values = _strides("linear_iter_params", ("token", "head"), call, k, v)
    values |= _pair_strides("linear_iter_params", ("token", "head"), call, (*names, "2"), k)
    values["linear_iter_params.token_count"] = k.shape[0]
    return CacheFields(values, k.shape[0])


def _check_paged(call: CacheCall) -> CacheFields:
    """Pools [block_count, block_len, num_kv_heads, head_dim], any strides, and a block table
    [batch_size, max_blocks], whose rows may be those of a wider one."""
    k, v, heads = given(call.views, "k"), given(call.views, "v"), call.num_kv_heads
    names = ("block_count", "block_len", "num_kv_heads")
    width, width_v = _extents(call.config)
    need_shape("k", k, (*names, "head_dim"), (None, None, heads, width))
    need_shape("v", v, (*names, "head_dim_v"), (*k.shape[:2], heads, width_v))
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
    if table.shape[1] == 0:
        width = 0  # no memory lies behind it, however far apart its rows are said to be
    axes = ("block", "token", "head")
    values = _strides("paged_iter_params", axes, call, k, v)
    values |= _pair_strides("paged_iter_params", axes, call, (*names, "2"), k)
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
    whole = isinstance(offset, Integral) and not isinstance(offset, bool)
    if not whole or not 0 <= offset < 2**63 or offset % LAYER_ALIGNMENT:
        raise ArgumentError(
            "layer_offset",
            f"layer_offset is {offset!r} bytes: it must be a multiple of {LAYER_ALIGNMENT} from 0 "
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
    """Strides in elements of the cache, which are codes where it is quantised."""
    values: Values = {}
    kv_dtype = call.config.kv_dtype
    for name, view in (("k", k), ("v", v)):
        if kv_dtype is KvDtype.SAME:
            need_rows(name, view, call.config.dtype)
            steps = [row_stride(name, view, axis) for axis in range(len(axes))]
        else:
            need_codes(name, view, kv_dtype)
            codes = 2 if kv_dtype is KvDtype.INT4 else 1
            steps = [codes * row_stride(name, view, axis, ROW_CODES) for axis in range(len(axes))]
        for word, step in zip(axes, steps, strict=True):
            values[f"{prefix}.{name}_{word}_stride"] = step
    return values


def _pair_strides(
    prefix: str, axes: tuple[str, ...], call: CacheCall, names: tuple[str, ...], k: ArrayView
) -> Values:
    """The (scale, zero) pairs of K and of V: arrays like k, whose rows are two elements of T."""
    values: Values = {}
    if not call.config.kv_dtype.has_pairs:
        return values
    for name in _PAIRS:
        view = given(call.views, name)
        need_shape(name, view, names, (*k.shape[:-1], 2))
        need_rows(name, view, call.config.dtype)
        word = name.removesuffix("s")
        for axis, of in enumerate(axes):
            values[f"{prefix}.{word}_{of}_stride"] = pair_stride(name, view, axis)
    return values


def _extents(config: AttentionConfig) -> tuple[int, int]:
    """The last extents of k and of v."""
    return row_extent(config, config.head_dim), row_extent(config, config.head_dim_v)


_CHECKS: Final[dict[Cache, Callable[[CacheCall], CacheFields]]] = {
    Cache.LINEAR: _check_linear,
    Cache.PAGED: _check_paged,
    Cache.BLOCK: _check_block,
}
