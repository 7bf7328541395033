# SPDX-License-Identifier: Apache-2.0
"""From a configuration to its tile shape, warps, stages and shared memory; no other module does
this arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import Arch, AttentionConfig, Cache, Mode

WARP_THREADS = 32
ELEMENT_BYTES = 2  # f16, bf16
ROW_ADDRESS_BYTES = 16  # addresses of a K row and of a V row
QUERY_TILE_BYTES = 128  # what a CTA works on, kept for its last stage
PANEL = 64  # elements: a row in shared memory is a multiple of 128 bytes

# What a CTA may use on the smallest devices that the family serves: 8.6, 8.9 and 12.0 have 100 KiB
# per SM and reserve 1 KiB per CTA.
SM80_SHARED_LIMIT = 99 * 1024
SM90_SHARED_LIMIT = 227 * 1024  # of one CTA, which then has the SM to itself
REDUCE_WARPS = 4
WRITE_WARPS = 8
WRITE_STEPS = 4  # rows of K and of V that a thread has in flight
WRITE_DESTINATION_BYTES = 16  # where one token goes

# Decode: a warp owns 16 tokens of each stage, in a ring of its own.
DECODE_WARP_TOKENS = 16
DECODE_RING_BYTES = 96 * 1024  # in flight on an SM twice: more than its share of the latency
DECODE_CHUNKS = 32  # of sequences, whose keys are counted by different warps
DECODE_COUNT_BYTES = 16  # what a warp has counted: tiles, most and fewest units, query tokens
DECODE_SEGMENT_BYTES = 48
DECODE_WORK_BYTES = 64
DECODE_ROW_BYTES = 16
DECODE_SOURCE_BYTES = {Cache.LINEAR: 32, Cache.BLOCK: 32, Cache.PAGED: 48}
DECODE_ROWS = (8, 16, 32)
# Float accumulators and Q of a thread; more than this and Q stays in shared memory.
DECODE_RESIDENT_REGISTERS = 112

SM90_PACKED_HEADS = 16  # a warp writes its 16 rows as whole tokens
WARPGROUP_ROWS = 64  # query rows that a Hopper warpgroup multiplies
WARPGROUP_WARPS = 4
SM90_GATHER_WARPS = 3
SM90_BOOKKEEPING_BYTES = 768  # at most: barriers and work items
SM90_ALIGNMENT = 1024  # bytes: that of a swizzled panel


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a CTA is shaped.

    cta_q: query rows of a CTA (reduction: rows that it merges; writer: rows that it writes).
    cta_s: keys of a tile. stages: tiles of K and V in shared memory. ctas_per_sm: what
    __launch_bounds__ leaves registers for. shared_bytes: dynamic shared memory. persistent: a CTA
    takes tiles until none is left. packed_heads: most query heads of a group that its rows may
    belong to. Of sm90 only: query_slots, tiles of Q in shared memory, 2 where the next arrives
    while one is computed; softmax, which of sm90::SoftmaxForm. Of writers only: lanes, threads of
    a row.
    """

    cta_q: int
    cta_s: int
    warps: int
    stages: int
    ctas_per_sm: int
    shared_bytes: int
    persistent: bool = False
    packed_heads: int = 1
    query_slots: int = 0
    softmax: str = ""
    lanes: int = 0

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.warps * WARP_THREADS


def tilings(config: AttentionConfig) -> dict[str, Tiling]:
    """Every tile that a configuration can be compiled with, by its name axis; "" is the default."""
    if config.mode is Mode.REDUCE:
        return {"": Tiling(REDUCE_WARPS, 0, REDUCE_WARPS, 0, ctas_per_sm=8, shared_bytes=0)}
    if config.mode is Mode.WRITE:
        return {"": _write(config)}
    if config.mode is Mode.DECODE:
        return _decode(config)
    if config.arch is Arch.SM90:
        return _sm90_prefill(config)
    return {"": _sm80_prefill(config)}


def tiling(config: AttentionConfig) -> Tiling:
    """The tile that the configuration names.

    Raises KeyError for a tile word that `tilings` does not list; a rule of `space` refuses it.
    """
    return tilings(config)[config.tile]


def _sm80_prefill(config: AttentionConfig) -> Tiling:
    """Tiles that fit 99 KiB with two stages, so that every device from 8.0 on runs them.

    Up to 128 columns, a warp holds 32 rows: each fragment of K and V read from shared memory then
    feeds two products. Up to 64, there is room for 128 keys, and a longer tile has less to do
    between products. Wider outputs leave registers for 16 rows only, and shared memory for 32 keys.
    """
    width = max(_padded(config.head_dim), _padded(config.head_dim_v))
    if width <= 64:
        return _sized(config, cta_q=128, cta_s=128, warps=4, ctas_per_sm=2)
    if width <= 128:
        return _sized(config, cta_q=128, cta_s=64, warps=4, ctas_per_sm=2)
    if width <= 192:
        return _sized(config, cta_q=128, cta_s=32, warps=8, ctas_per_sm=1)
    return _sized(config, cta_q=64, cta_s=32, warps=4, ctas_per_sm=2)


def _write(config: AttentionConfig) -> Tiling:
    """A row is read by as many threads as it has pieces of 16 bytes, rounded up to a power of two;
    cta_q counts rows, each of one token and head. Shared memory holds where their tokens go."""
    pieces = max(config.head_dim, config.head_dim_v) * ELEMENT_BYTES // 16
    lanes = 1 << max(pieces - 1, 0).bit_length()
    rows = WRITE_STEPS * WRITE_WARPS * WARP_THREADS // lanes
    return Tiling(
        rows,
        cta_s=0,
        warps=WRITE_WARPS,
        stages=0,
        ctas_per_sm=4,
        shared_bytes=rows * WRITE_DESTINATION_BYTES,
        lanes=lanes,
    )


def _decode(config: AttentionConfig) -> dict[str, Tiling]:
    """Rows of q on the narrow side of the products, keys on the wide one.

    The default holds 8 rows and a ring of 96 KiB, which leaves room for two CTAs on an SM of 227
    KiB and fits devices with 99. Wide groups take 16 or 32 rows, so that K and V are read once; a
    call with few sequences takes one CTA per SM, whose ring holds twice the stages: fewer splits
    then keep as many bytes in flight. Rows of 256 leave a stage to two warps.
    """
    width = _padded(config.head_dim)
    warps = 4 if width <= 192 else 2
    stages = DECODE_RING_BYTES // (warps * _decode_piece_bytes(width))
    tiles = {"": _decode_sized(config, rows=8, warps=warps, stages=stages, ctas_per_sm=2)}
    keys = warps * DECODE_WARP_TOKENS
    for rows in DECODE_ROWS[1:]:
        if rows * width <= 16 * 256:
            tiles[f"t{rows}x{keys}"] = _decode_sized(
                config, rows=rows, warps=warps, stages=stages, ctas_per_sm=2
            )
    if warps == 4:
        tiles[f"t8x{keys}s{2 * stages}"] = _decode_sized(
            config, rows=8, warps=warps, stages=2 * stages, ctas_per_sm=1
        )
    return tiles


def _decode_piece_bytes(width: int) -> int:
    """K and V rows of a warp in one stage."""
    return 2 * DECODE_WARP_TOKENS * width * ELEMENT_BYTES


def _decode_sized(
    config: AttentionConfig, *, rows: int, warps: int, stages: int, ctas_per_sm: int
) -> Tiling:
    """Adds the shared memory of sm80::DecodeStorage: the rings, Q where registers do not hold it,
    (max, sum) of each warp and row, what the warps count, and what the CTA works on."""
    width = _padded(config.head_dim)
    resident = rows * (config.head_dim + config.head_dim // 2) // 32 <= DECODE_RESIDENT_REGISTERS
    query = 0 if resident else rows * width * ELEMENT_BYTES
    counts = warps * rows * 8 + DECODE_CHUNKS * 4 + warps * DECODE_COUNT_BYTES
    work = warps * (stages + 2) * DECODE_SEGMENT_BYTES + DECODE_WORK_BYTES
    work += warps * (rows * DECODE_ROW_BYTES + DECODE_SOURCE_BYTES[config.cache or Cache.PAGED])
    ring = warps * stages * _decode_piece_bytes(width)
    return Tiling(
        cta_q=rows,
        cta_s=warps * DECODE_WARP_TOKENS,
        warps=warps,
        stages=stages,
        ctas_per_sm=ctas_per_sm,
        shared_bytes=_round_up(ring + query + counts + work, 128),
    )


def _sized(
    config: AttentionConfig, *, cta_q: int, cta_s: int, warps: int, ctas_per_sm: int
) -> Tiling:
    """Adds the shared memory of sm80::PrefillStorage: Q (later the output), the rings of K and V,
    row addresses, what the CTA works on."""
    stages = 2
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    query = cta_q * max(width, width_v)
    ring = stages * cta_s * (width + width_v)
    addresses = 0 if config.cache is Cache.LINEAR else 2 * cta_s * ROW_ADDRESS_BYTES
    shared_bytes = (query + ring) * ELEMENT_BYTES + addresses + QUERY_TILE_BYTES
    return Tiling(cta_q, cta_s, warps, stages, ctas_per_sm, shared_bytes)


def _sm90_prefill(config: AttentionConfig) -> dict[str, Tiling]:
    """The default tile first. Each was the fastest for some lengths on an H200.

    Tiles of 64 rows have one warpgroup: where few rows are asked for, they fill more of the
    machine. Up to 64 columns, four warpgroups of 64 keys keep the exponentials busiest; three of
    128 keys come within 2 % for long full attention. Up to 128, taking the exponentials before the
    maximum is known hides the reduction; in place they cost less per tile, which short sequences
    feel. Wider ones have no room for a second tile of Q.
    """
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    linear = config.cache is Cache.LINEAR
    if max(width, width_v) <= 64:
        tiles = {
            "": _sm90_sized(config, 256, 64, stages=4, query_slots=2),
            "t128x128": _sm90_sized(config, 128, 128, stages=3, query_slots=2),
            "t64x128": _sm90_sized(config, 64, 128, stages=2, query_slots=2, ctas_per_sm=2),
        }
        if linear:
            tiles["t192x128"] = _sm90_sized(config, 192, 128, stages=3, query_slots=2)
        return tiles
    if max(width, width_v) <= 128:
        return {
            "": _sm90_sized(config, 128, 128, stages=2, query_slots=2, softmax="kOptimistic"),
            "t128x128": _sm90_sized(config, 128, 128, stages=2, query_slots=2),
            "t64x128": _sm90_sized(config, 64, 128, stages=2, query_slots=2),
            "t64x64": _sm90_sized(config, 64, 64, stages=2, query_slots=2, ctas_per_sm=2),
        }
    if width <= 192 and width_v <= 128:
        return {"": _sm90_sized(config, 128, 96, stages=2, query_slots=2)}
    if max(width, width_v) <= 192:
        if linear:
            return {
                "": _sm90_sized(config, 128, 96, stages=2, query_slots=1),
                "t128x64": _sm90_sized(config, 128, 64, stages=2, query_slots=2),
            }
        return {"": _sm90_sized(config, 128, 64, stages=2, query_slots=2)}
    return {
        "": _sm90_sized(config, 128, 64, stages=2, query_slots=1),
        "t64x64": _sm90_sized(config, 64, 64, stages=2, query_slots=2),
    }


def _sm90_sized(
    config: AttentionConfig,
    cta_q: int,
    cta_s: int,
    *,
    stages: int,
    query_slots: int,
    softmax: str = "kInPlace",
    ctas_per_sm: int = 1,
) -> Tiling:
    """Adds the shared memory of sm90::SharedStorage: Q, the rings of K and V, where Q has one slot
    half of the output's width as staging, and where rows are gathered their addresses.

    With two slots the output leaves through Q, which must be as wide; with one it leaves in two
    turns, for which it must be wider than a panel.
    """
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    if width_v > width:
        query_slots = 1
    elif width_v <= PANEL:
        query_slots = 2
    query = query_slots * cta_q * width
    ring = stages * cta_s * (width + width_v)
    staging = cta_q * _round_up(width_v // 2, PANEL) if query_slots == 1 else 0
    bookkeeping = SM90_BOOKKEEPING_BYTES
    if config.cache is not Cache.LINEAR:
        rows_of_warp = _round_up(-(-cta_s // SM90_GATHER_WARPS), 4)
        bookkeeping += SM90_GATHER_WARPS * 2 * rows_of_warp * ROW_ADDRESS_BYTES
    shared_bytes = (query + ring + staging) * ELEMENT_BYTES
    shared_bytes += _round_up(bookkeeping, SM90_ALIGNMENT)
    warps = (cta_q // WARPGROUP_ROWS + 1) * WARPGROUP_WARPS
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
        softmax=softmax,
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _padded(columns: int) -> int:
    return _round_up(columns, PANEL)
