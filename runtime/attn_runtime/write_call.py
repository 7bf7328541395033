# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of a cache writer and turns them into fields of AttentionParams.

Pure: arrays come as views, so that everything here runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attn_codegen.config import AttentionConfig, Cache
from attn_runtime.arguments import CACHE_TYPE, check_devices, check_lengths
from attn_runtime.array_view import ArrayView
from attn_runtime.checks import (
    Views,
    given,
    is_step,
    need_elements,
    need_int,
    need_shape,
    row_stride,
)
from attn_runtime.errors import ArgumentError
from attn_runtime.kv_cache import CacheCall, Values, check_cache

ARRAYS: Final = (
    "k_new",
    "v_new",
    "k",
    "v",
    "k_pairs",
    "v_pairs",
    "k_scale",
    "v_scale",
    "block_table",
    "block_ptrs",
    "cu_block_nums",
    "cu_q_len",
    "cu_k_len",
    "finished",
)
"""The array arguments of a call, in the order of their addresses."""

_COMMON: Final = {
    "k_new": "k",
    "v_new": "v",
    **{name: name for name in ("k_scale", "v_scale", "cu_q_len", "cu_k_len", "finished")},
}
_OF_CACHE: Final = {
    Cache.LINEAR: ("linear_iter_params", ("k", "v", "k_pairs", "v_pairs")),
    Cache.PAGED: ("paged_iter_params", ("k", "v", "k_pairs", "v_pairs", "block_table")),
    Cache.BLOCK: ("block_iter_params", ("block_ptrs", "cu_block_nums")),
}
_ALIGNMENT: Final = {"k_new": 16, "v_new": 16, "k": 16, "v": 16, "block_ptrs": 8, "finished": 1}


def check_write(
    config: AttentionConfig,
    num_kv_heads: int,
    views: Views,
    block_len: int | None,
    layer_offset: int | None,
    ordinal: int,
) -> Values:
    """The fields of AttentionParams that are no addresses, by dotted name. `ordinal` is the GPU of
    the call. Raises ArgumentError that names the first argument at fault."""
    check_devices(views, ordinal)
    tokens, k_stride = _check_rows("k_new", views, config, num_kv_heads, config.head_dim)
    v_tokens, v_stride = _check_rows("v_new", views, config, num_kv_heads, config.head_dim_v)
    if v_tokens != tokens:
        raise ArgumentError(
            "v_new", f"v_new has {v_tokens} tokens, and k_new has {tokens}: give both the same"
        )
    batch = check_lengths(views)
    fields, capacity = check_cache(
        CacheCall(config, num_kv_heads, batch, views, block_len, layer_offset)
    )
    for name in ("k", "v", "k_pairs", "v_pairs"):
        view = views.get(name)
        if view is not None and view.readonly:
            raise ArgumentError(name, f"{name} is read-only, and new rows are written there")
    assert config.cache is not None  # a writer has a cache: a rule of the space
    return fields | {
        "k_stride": k_stride,
        "v_stride": v_stride,
        "token_num": tokens,
        "batch_size": batch,
        "max_k_len": min(capacity, 2**31 - 1),
        "num_kv_heads": num_kv_heads,
        "size_per_head": config.head_dim,
        "size_per_head_v": config.head_dim_v,
        "cache": CACHE_TYPE[config.cache],
        "cp_size": 1,
    }


def address_fields(config: AttentionConfig, addresses: Sequence[int]) -> Values:
    """The addresses of ARRAYS as fields of AttentionParams, by dotted name."""
    assert config.cache is not None  # a writer has a cache: a rule of the space
    owner, names = _OF_CACHE[config.cache]
    fields = _COMMON | {name: f"{owner}.{name}" for name in names}
    by_name = dict(zip(ARRAYS, addresses, strict=True))
    return {field: by_name[name] for name, field in fields.items()}


def need_aligned(addresses: Sequence[int]) -> None:
    """Refuse an address that the kernel cannot move data from or to."""
    for name, address in zip(ARRAYS, addresses, strict=True):
        step = _ALIGNMENT.get(name, 4)
        if address % step:
            raise ArgumentError(
                name,
                f"{name} is at address {address:#x}: it must be a multiple of {step} bytes; copy "
                "it to an array of its own, or slice at a multiple",
            )


def _check_rows(
    name: str, views: Views, config: AttentionConfig, heads: int, width: int
) -> tuple[int, int]:
    """(tokens, elements between two of them) of new rows."""
    view: ArrayView = given(views, name)
    need_shape(name, view, ("token_num", "num_kv_heads", "head_dim"), (None, heads, width))
    need_elements(name, view, config.dtype)
    if not is_step(view, 2, 1) or not is_step(view, 1, width):
        raise ArgumentError(
            name,
            f"{name} has strides {list(view.strides)}: the heads of a token must lie back to back "
            f"(strides [any, {width}, 1]); only tokens may be apart",
        )
    tokens = need_int(name, view.shape[0], what=f"token_num, the first extent of {name},")
    return tokens, row_stride(name, view, 0)
