# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of a cache writer and turns them into fields of AttentionParams.

Pure: arrays come as views, so that everything here runs without a GPU.
"""

from __future__ import annotations

from typing import Final

from attn_codegen import params
from attn_codegen.config import AttentionConfig
from attn_runtime.arguments import CACHE_TYPE, check_devices, check_lengths
from attn_runtime.array_view import ArrayView
from attn_runtime.call_buffer import CACHE_ARRAYS, Place, cache_fields
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
    *CACHE_ARRAYS,
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


def places(config: AttentionConfig) -> dict[str, tuple[Place, ...]]:
    """Where the address of each of ARRAYS is written in AttentionParams."""
    assert config.cache is not None  # a writer has a cache: a rule of the space
    fields = _COMMON | cache_fields(config.cache)
    offsets = {name: offset for name, _, offset in params.leaves("AttentionParams")}
    return {name: ((offsets[field], 0),) for name, field in fields.items()}


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
