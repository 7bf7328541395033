# SPDX-License-Identifier: Apache-2.0
"""The tiles of decode kernels, and their shared memory."""

from __future__ import annotations

from attn_codegen.config import Arch, AttentionConfig, Cache, KvDtype
from attn_codegen.tile import (
    CLUSTER_CTAS,
    ELEMENT_BYTES,
    KV_BITS,
    PAIR_BYTES,
    ROW_BYTES,
    Tiling,
    padded,
    round_up,
)

# Decode: a warp owns some units of 16 tokens of each stage, in a ring of its own.
DECODE_UNIT_TOKENS = 16
DECODE_RING_BYTES = 96 * 1024  # in flight on an SM twice: more than its share of the latency
DECODE_SPARE_BYTES = 5 * 1024  # of four CTAs: what an SM has beyond twice that ring
DECODE_CODE_PIECE_BYTES = 4096  # of a warp and stage, at least
DECODE_CHUNKS = 32  # of sequences, whose keys are counted by different warps
DECODE_COUNT_BYTES = 16  # what a warp has counted: tiles, most and fewest units, query tokens
DECODE_SEGMENT_BYTES = 52
DECODE_WORK_BYTES = 80
DECODE_ROW_BYTES = 16
DECODE_SOURCE_BYTES = {Cache.LINEAR: 48, Cache.BLOCK: 64, Cache.PAGED: 80}
DECODE_PAIR_SOURCE_BYTES = 32
DECODE_ROWS = (8, 16, 32)
DECODE_CLUSTER_COLUMNS = 128  # of a row: what other CTAs send finds room beside the ring
DECODE_MOST_ELEMENTS = 16 * 256  # of the rows of a tile: what registers hold
# Float accumulators and Q of a thread; more than this and Q stays in shared memory.
DECODE_RESIDENT_REGISTERS = 112


def decode_tiles(config: AttentionConfig) -> dict[str, Tiling]:
    """Rows of q on the narrow side of the products, keys on the wide one.

    The default holds 8 rows and a ring of 96 KiB, which leaves room for two CTAs on an SM of 227
    KiB and fits devices with 99. Wide groups, and several query tokens, take 16 or 32 rows, so that
    K and V are read once. Rows of 256 leave a stage of that ring to two warps: where shared memory
    allows, four of one CTA take its place, whose ring holds twice the bytes.
    """
    if config.kv_dtype is not KvDtype.SAME:
        return _decode_codes(config)
    width = padded(config.head_dim)
    tiles = {}
    for ctas in (2, 1) if width > 192 else (2,):
        warps = 2 if ctas == 2 and width > 192 else 4
        keys = warps * DECODE_UNIT_TOKENS
        stages = DECODE_RING_BYTES * 2 // ctas // (warps * _decode_unit_bytes(config))
        for rows in DECODE_ROWS:
            word = f"t{rows}x{keys}" + (f"s{stages}" if ctas == 1 else "")
            is_default = ctas == 2 and rows == DECODE_ROWS[0]
            if rows * width <= DECODE_MOST_ELEMENTS:
                tiles["" if is_default else word] = _decode_sized(
                    config, rows=rows, warps=warps, stages=stages, ctas_per_sm=ctas
                )
    return tiles


def _decode_codes(config: AttentionConfig) -> dict[str, Tiling]:
    """Tiles of quantised caches. The same bytes take more arithmetic, which four CTAs of an SM
    hide better than two of twice the ring (int4: by a quarter); more rows, or wider ones, leave
    registers for two. A call of few sequences gained nothing from one CTA with a deeper ring.
    """
    width = padded(config.head_dim)
    warps = 4 if width <= 192 else 2
    unit = _decode_unit_bytes(config)
    units = 2 if unit < DECODE_CODE_PIECE_BYTES or 8 * width * 4 > unit else 1
    piece = warps * units * unit

    def tile(rows: int, ctas: int) -> Tiling:
        ring = DECODE_RING_BYTES * 2 // ctas + (DECODE_SPARE_BYTES if ctas > 2 else 0)
        return _decode_sized(
            config, rows=rows, warps=warps, stages=ring // piece, ctas_per_sm=ctas, units=units
        )

    keys = warps * units * DECODE_UNIT_TOKENS
    tiles = {"": tile(8, 4 if width <= 128 else 2)}
    int4 = config.kv_dtype is KvDtype.INT4
    widest = 192 if int4 else 256  # for which registers suffice
    # ptxas 13.0 gives copies of 32 rows over int4 of 64 a descriptor in an odd uniform register,
    # for sm_90 (`desc[UR1]` of LDGSTS): an illegal instruction.
    most_rows = 16 if int4 and width == 64 else 32
    for rows in DECODE_ROWS[1:]:
        if rows <= most_rows and width <= widest and rows * width <= DECODE_MOST_ELEMENTS:
            tiles[f"t{rows}x{keys}"] = tile(rows, 2)
    return tiles


def _decode_unit_bytes(config: AttentionConfig) -> int:
    """K and V rows of 16 tokens, and their (scale, zero) pairs. Narrow rows of codes share a line
    of shared memory (sm80::PackedTile)."""
    row = config.head_dim * KV_BITS[config.kv_dtype] // 8
    if config.kv_dtype is KvDtype.SAME or ROW_BYTES % row:
        row = round_up(row, ROW_BYTES)
    pairs = 2 * DECODE_UNIT_TOKENS * PAIR_BYTES if config.kv_dtype.has_pairs else 0
    return 2 * DECODE_UNIT_TOKENS * row + pairs


def _decode_sized(
    config: AttentionConfig, *, rows: int, warps: int, stages: int, ctas_per_sm: int, units: int = 1
) -> Tiling:
    """Adds the shared memory of sm80::DecodeStorage: the rings, Q where registers do not hold it,
    (max, sum) of each warp and row, what the warps count, and what the CTA works on."""
    width = padded(config.head_dim)
    resident = rows * (config.head_dim + config.head_dim // 2) // 32 <= DECODE_RESIDENT_REGISTERS
    query = 0 if resident else rows * width * ELEMENT_BYTES
    counts = warps * rows * 8 + DECODE_CHUNKS * 4 + warps * DECODE_COUNT_BYTES
    work = warps * (stages + 2) * DECODE_SEGMENT_BYTES + DECODE_WORK_BYTES
    source = DECODE_SOURCE_BYTES[config.cache or Cache.PAGED]
    source += DECODE_PAIR_SOURCE_BYTES if config.kv_dtype.has_pairs else 0
    in_registers = rows == DECODE_ROWS[0] and ctas_per_sm <= 2
    sources = 0 if in_registers else round_up(warps * source, 128)
    work += warps * rows * DECODE_ROW_BYTES + sources
    ring = warps * stages * units * _decode_unit_bytes(config)
    has_clusters = (
        config.arch is Arch.SM90
        and config.cache is Cache.PAGED
        and in_registers
        and config.head_dim <= DECODE_CLUSTER_COLUMNS
    )
    return Tiling(
        cta_q=rows,
        cta_s=warps * units * DECODE_UNIT_TOKENS,
        warps=warps,
        stages=stages,
        ctas_per_sm=ctas_per_sm,
        shared_bytes=round_up(ring + query + counts + work, 128),
        plain=in_registers or (rows == DECODE_ROWS[1] and config.kv_dtype is KvDtype.SAME),
        cluster_ctas=CLUSTER_CTAS if has_clusters else 1,
    )
