# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of a cache writer and turns them into fields of AttentionParams.

Pure: arrays come as views, so that everything here runs without a GPU.
"""

from __future__ import annotations

from typing import Final

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Cache
from attn_runtime.arguments import CACHE_TYPE, check_cu_rows, check_devices, check_lengths
from attn_runtime.call_buffer import CACHE_ARRAYS, Place, cache_fields
from attn_runtime.checks import Views
from attn_runtime.errors import ArgumentError
from attn_runtime.kv_cache import CacheCall, Values, check_cache
from attn_runtime.new_rows import check_new_rows
from attn_runtime.ranks import ONE_RANK, Ranks

MOST_ROWS: Final = 2**31 - 1
"""Of one call, each of a token and KV head: kernels count them in 32 bits."""

MOST_TURNS: Final = 3
"""Of a CTA, where all are there at a time."""

ARRAYS: Final = (
    "k_new",
    "v_new",
    *CACHE_ARRAYS,
    "cu_q_len",
    "cu_k_len",
    "finished",
    "cu_rows",
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
    ranks: Ranks = ONE_RANK,
) -> Values:
    """The fields of AttentionParams that are no addresses, by dotted name. `ordinal` is the GPU of
    the call, `ranks` whose cache it is. Raises ArgumentError that names the first argument at
    fault."""
    check_devices(views, ordinal)
    tokens, strides = check_new_rows(config, num_kv_heads, views)
    rows = tokens * num_kv_heads
    if rows > MOST_ROWS:
        raise ArgumentError(
            "k_new",
            f"k_new has {tokens} tokens of {num_kv_heads} KV heads, {rows} rows: one call takes "
            f"{MOST_ROWS}, write them in parts",
        )
    batch = check_lengths(views)
    fields, capacity = check_cache(
        CacheCall(config, num_kv_heads, batch, views, block_len, layer_offset)
    )
    assert config.cache is not None  # a writer has a cache: a rule of the space
    check_cu_rows(ranks, config, views, batch)
    return (
        fields
        | strides
        | {
            "token_num": tokens,
            "batch_size": batch,
            "max_k_len": min(capacity, 2**31 - 1),
            "num_kv_heads": num_kv_heads,
            "size_per_head": config.head_dim,
            "size_per_head_v": config.head_dim_v,
            "cache": CACHE_TYPE[config.cache],
        }
        | ranks.fields()
    )


def write_grid(rows: int, step: int, ctas: int) -> int:
    """CTAs that take turns at `rows` rows, `step` at a time; the device holds `ctas` of them. Up to
    three turns each there are no more. Of more rows each CTA takes two: those that come later begin
    while others end, and what all do at a time lies closer together (attn/write_check.h)."""
    steps = -(-rows // step)
    return min(steps, ctas) if steps <= MOST_TURNS * ctas else -(-steps // 2)


def places(config: AttentionConfig) -> dict[str, tuple[Place, ...]]:
    """Where the address of each of ARRAYS is written in AttentionParams."""
    assert config.cache is not None  # a writer has a cache: a rule of the space
    fields = _COMMON | cache_fields(config.cache)
    if config.cache is Cache.LINEAR:
        fields["cu_rows"] = "linear_iter_params.cu_rows"
    offsets = {name: offset for name, _, offset in struct_layout.leaves("AttentionParams")}
    return {name: ((offsets[field], 0),) for name, field in fields.items()}
