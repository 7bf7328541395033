# SPDX-License-Identifier: Apache-2.0
"""Checks the rows of K and V of new tokens, which a writer or a decode call puts into the cache.

Pure: arrays come as views, so that everything here runs without a GPU.
"""

from __future__ import annotations

from attn_codegen.config import AttentionConfig
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
from attn_runtime.kv_cache import Values


def check_new_rows(config: AttentionConfig, num_kv_heads: int, views: Views) -> tuple[int, Values]:
    """(tokens, the fields of AttentionParams that are no addresses) of k_new and v_new.

    Raises ArgumentError that names the first argument at fault; the cache is one that is written.
    """
    tokens, k_stride = _check_rows("k_new", views, config, num_kv_heads, config.head_dim)
    v_tokens, v_stride = _check_rows("v_new", views, config, num_kv_heads, config.head_dim_v)
    if v_tokens != tokens:
        raise ArgumentError(
            "v_new", f"v_new has {v_tokens} tokens, and k_new has {tokens}: give both the same"
        )
    for name in ("k", "v", "k_pairs", "v_pairs"):
        view = views.get(name)
        if view is not None and view.readonly:
            raise ArgumentError(name, f"{name} is read-only, and new rows are written there")
    return tokens, {"k_stride": k_stride, "v_stride": v_stride}


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
            f"(strides [any, {width}, 1]), only tokens may be apart; copy it",
        )
    tokens = need_int(name, view.shape[0], what=f"token_num, the first extent of {name},")
    return tokens, row_stride(name, view, 0)
