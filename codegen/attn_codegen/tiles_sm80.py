# SPDX-License-Identifier: Apache-2.0
"""The tiles of sm80 prefill kernels, and their shared memory."""

from __future__ import annotations

from attn_codegen.config import AttentionConfig, KvDtype
from attn_codegen.tile import (
    ELEMENT_BYTES,
    KV_BITS,
    PAIR_BYTES,
    ROW_BYTES,
    Tiling,
    padded,
    round_up,
)

QUERY_TILE_BYTES = 128  # what a CTA works on, kept for its last stage
WARP_KEYS_BYTES = 16  # which keys a warp sees


def sm80_tiles(config: AttentionConfig) -> dict[str, Tiling]:
    """The default fits 99 KiB with two stages, so that every device from 8.0 on runs it.

    Up to 128 columns, a warp holds 32 rows: each fragment of K and V read from shared memory then
    feeds two products. Up to 64, there is room for 128 keys, and a longer tile has less to do
    between products. Wider outputs leave registers for 16 rows only, and shared memory for 32 keys;
    where a CTA may take more (8.0, 9.0, 10.0), equal widths up to 192 have a large tile of 64 keys,
    a sixth faster, unless their cache is quantised.
    """
    is_equal = config.head_dim == config.head_dim_v and config.kv_dtype is KvDtype.SAME
    width = max(padded(config.head_dim), padded(config.head_dim_v))
    if width <= 64:
        return {"": _sized(config, cta_q=128, cta_s=128, warps=4, ctas_per_sm=2)}
    if width <= 128:
        return {"": _sized(config, cta_q=128, cta_s=64, warps=4, ctas_per_sm=2)}
    if width <= 192:
        tiles = {"": _sized(config, cta_q=128, cta_s=32, warps=8, ctas_per_sm=1)}
        if is_equal:
            tiles["t128x64"] = _sized(config, cta_q=128, cta_s=64, warps=8, ctas_per_sm=1)
        return tiles
    return {"": _sized(config, cta_q=64, cta_s=32, warps=4, ctas_per_sm=2)}


def _sized(
    config: AttentionConfig, *, cta_q: int, cta_s: int, warps: int, ctas_per_sm: int
) -> Tiling:
    """Adds the shared memory of sm80::PrefillStorage: codes, Q (later the output), the rings of K
    and V, what the warps see, what the CTA works on."""
    stages = 2
    width, width_v = padded(config.head_dim), padded(config.head_dim_v)
    is_plain = config.kv_dtype is KvDtype.SAME
    codes = 0 if is_plain else _code_tile_bytes(config, cta_s)
    query = cta_q * max(width, width_v)
    ring = (stages if is_plain else 1) * cta_s * (width + width_v)
    seen = round_up(warps * WARP_KEYS_BYTES, ROW_BYTES)
    shared_bytes = codes + (query + ring) * ELEMENT_BYTES + seen + QUERY_TILE_BYTES
    return Tiling(cta_q, cta_s, warps, stages, ctas_per_sm, shared_bytes)


def _code_tile_bytes(config: AttentionConfig, cta_s: int) -> int:
    """sm80::CodeTiles: a tile of K and of V in codes, (scale, zero) pairs and where they come
    from."""
    row = round_up(config.head_dim * KV_BITS[config.kv_dtype] // 8, ROW_BYTES)
    pairs = ROW_BYTES + 2 * cta_s * PAIR_BYTES if config.kv_dtype.has_pairs else 0
    return 2 * cta_s * row + pairs
