# SPDX-License-Identifier: Apache-2.0
"""The tiles of Hopper's prefill kernels, and their shared memory."""

from __future__ import annotations

from functools import partial

from attn_codegen.config import AttentionConfig, Cache, KvDtype
from attn_codegen.tile import (
    CLUSTER_CTAS,
    ELEMENT_BYTES,
    KV_BITS,
    PAIR_BYTES,
    PANEL,
    ROW_BYTES,
    Tiling,
    padded,
    round_up,
)

FLOAT_BYTES = 4
ROW_ADDRESS_BYTES = 16  # addresses of a K row and of a V row
SM90_PACKED_HEADS = 64  # the rows of a warpgroup are whole tokens, as its box of Q is
WARPGROUP_ROWS = 64  # query rows that a Hopper warpgroup multiplies
WARPGROUP_WARPS = 4
SM90_TABLE_BARRIERS = 4  # of the tables of row addresses, of K and of V: written and read
SM90_BARRIER_BYTES = 8
SM90_ITEM_BYTES = 56
SM90_WORK_BYTES = 68  # and of each row group:
SM90_SEEN_BYTES = 12
SM90_PART_COLUMNS = 8  # floats of a row: (reference, sum) of each of the four threads that have it
SM90_ALIGNMENT = 1024  # bytes: that of a swizzled panel


def sm90_tiles(config: AttentionConfig) -> dict[str, Tiling]:
    """The default tile first. Each was the fastest for some lengths on an H200.

    Tiles of 64 rows have one warpgroup: where few rows are asked for, they fill more of the
    machine, and with two that share the keys (k2) a row is done sooner. Up to 64 columns, four
    warpgroups of 64 keys keep the exponentials busiest; three of 128 keys come within 2 % for long
    full attention. Up to 128, taking the exponentials before the maximum is known hides the
    reduction; in place they cost less per tile, which short sequences feel. A third slot of Q,
    where there is room, lets the next Q arrive while an output leaves. Wider heads take fewer keys
    at a time: up to 192 columns a second slot of Q beside blocks of 64 keys was 1 to 23 % faster
    than one beside 96, and beyond there is no room for it.
    """
    if config.kv_dtype is not KvDtype.SAME:
        return _sm90_codes(config)
    width, width_v = padded(config.head_dim), padded(config.head_dim_v)
    linear = config.cache is Cache.LINEAR
    if max(width, width_v) <= 64:
        tiles = {
            "": _sm90_sized(config, 256, 64, stages=4, query_slots=3),
            "t128x128": _sm90_sized(config, 128, 128, stages=3, query_slots=3),
            "t64x128": _sm90_sized(config, 64, 128, stages=2, query_slots=3, ctas_per_sm=2),
        }
        if linear:
            tiles["t192x128"] = _sm90_sized(config, 192, 128, stages=3, query_slots=2)
            tiles["t64x64k2"] = _sm90_sized(config, 64, 64, stages=4, query_slots=2, key_groups=2)
        return tiles
    if max(width, width_v) <= 128:
        return {
            "": _sm90_sized(config, 128, 128, stages=2, query_slots=3, softmax="kOptimistic"),
            "t128x128": _sm90_sized(config, 128, 128, stages=2, query_slots=3),
            "t64x128": _sm90_sized(config, 64, 128, stages=2, query_slots=2),
            "t64x64": _sm90_sized(config, 64, 64, stages=2, query_slots=2, ctas_per_sm=2),
        }
    if width <= 192 and width_v <= 128:
        return {"": _sm90_sized(config, 128, 96, stages=2, query_slots=2)}
    if max(width, width_v) <= 192:
        return {"": _sm90_sized(config, 128, 64, stages=2, query_slots=2)}
    return {
        "": _sm90_sized(config, 128, 64, stages=2, query_slots=1),
        "t64x64": _sm90_sized(config, 64, 64, stages=2, query_slots=2),
    }


def _sm90_codes(config: AttentionConfig) -> dict[str, Tiling]:
    """Tiles over quantised caches: what fits beside a block of K and of V in codes. Narrow heads
    share what is expanded among three warpgroups (0.81 of the speed of bf16 rather than 0.68)."""
    sized = partial(_sm90_sized, config, softmax="kOptimistic", stages=2, query_slots=2)
    width = padded(config.head_dim)
    if width <= 64:
        return {"": sized(192, 64, stages=4, code_stages=3)}
    if width <= 128:
        return {"": sized(128, 128, code_stages=1)}
    if width <= 192:
        return {"": sized(128, 64, code_stages=1)}
    return {"": sized(128, 48, query_slots=1, code_stages=1)}


def _sm90_sized(
    config: AttentionConfig,
    cta_q: int,
    cta_s: int,
    *,
    stages: int,
    query_slots: int,
    key_groups: int = 1,
    softmax: str = "kInPlace",
    ctas_per_sm: int = 1,
    code_stages: int = 0,
) -> Tiling:
    """Adds the shared memory of sm90::SharedStorage: Q, the rings of K and V, where Q has one slot
    half of the output's width as staging, where rows are gathered their addresses, and where the
    cache is quantised a block of K and of V in codes.

    With two slots the output leaves through Q, which must be as wide; with one it leaves in two
    turns, for which it must be wider than a panel.
    """
    width, width_v = padded(config.head_dim), padded(config.head_dim_v)
    if width_v > width:
        query_slots = 1
    elif width_v <= PANEL:
        query_slots = max(query_slots, 2)
    query = query_slots * cta_q * width
    ring = stages * cta_s * (width + width_v)
    staging = cta_q * round_up(width_v // 2, PANEL) if query_slots == 1 else 0
    row_groups = cta_q // WARPGROUP_ROWS
    barriers = 2 * query_slots * row_groups + 4 * (stages + code_stages) + 4
    barriers += 2 * (key_groups - 1) * row_groups
    bookkeeping = barriers * SM90_BARRIER_BYTES
    bookkeeping += 2 * (SM90_WORK_BYTES + row_groups * SM90_SEEN_BYTES)
    bookkeeping += max(query_slots, 2) * row_groups * SM90_ITEM_BYTES
    if config.kv_dtype is not KvDtype.SAME:
        row = round_up(config.head_dim * KV_BITS[config.kv_dtype] // 8, ROW_BYTES)
        pair = PAIR_BYTES if config.kv_dtype.has_pairs else 0
        bookkeeping += code_stages * 2 * cta_s * (row + pair)
    elif config.cache is not Cache.LINEAR:
        bookkeeping += cta_s * ROW_ADDRESS_BYTES + SM90_TABLE_BARRIERS * SM90_BARRIER_BYTES
    parts = (key_groups - 1) * cta_q * (round_up(width_v, PANEL) + SM90_PART_COLUMNS)
    shared_bytes = (query + ring + staging) * ELEMENT_BYTES + parts * FLOAT_BYTES
    shared_bytes += round_up(bookkeeping, SM90_ALIGNMENT)
    producers = 2 if code_stages else 1
    consumers = row_groups * key_groups
    warps = (consumers + producers) * WARPGROUP_WARPS
    merges_splits = consumers == 1 and not code_stages
    return Tiling(
        cta_q,
        cta_s,
        warps,
        stages,
        ctas_per_sm=ctas_per_sm,
        shared_bytes=shared_bytes,
        persistent=True,
        packed_heads=SM90_PACKED_HEADS,
        query_slots=query_slots,
        key_groups=key_groups,
        softmax=softmax,
        merged_splits=CLUSTER_CTAS if merges_splits else 1,
        code_stages=code_stages,
    )
