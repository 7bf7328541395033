# SPDX-License-Identifier: Apache-2.0
"""From a configuration to its tile shape, warps, stages and shared memory; no other module does
this arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import Arch, AttentionConfig, Cache, KvDtype, Mode

WARP_THREADS = 32
ELEMENT_BYTES = 2  # f16, bf16
FLOAT_BYTES = 4
ROW_ADDRESS_BYTES = 16  # addresses of a K row and of a V row
QUERY_TILE_BYTES = 128  # what a CTA works on, kept for its last stage
WARP_KEYS_BYTES = 16  # which keys a warp sees
PANEL = 64  # elements: a row in shared memory is a multiple of 128 bytes
ROW_BYTES = 128
PAIR_BYTES = 4
KV_BITS = {KvDtype.SAME: 16, KvDtype.INT8: 8, KvDtype.INT4: 4, KvDtype.E4M3: 8}

# What a CTA may use on the smallest devices that the family serves: 8.6, 8.9 and 12.0 have 100 KiB
# per SM and reserve 1 KiB per CTA.
SM80_SHARED_LIMIT = 99 * 1024
SM90_SHARED_LIMIT = 227 * 1024  # of one CTA, which then has the SM to itself
REDUCE_WARPS = 4
WRITE_WARPS = 8
WRITE_PLACE_BYTES = 16  # addresses of a row of K and of V

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
DECODE_SOURCE_BYTES = {Cache.LINEAR: 48, Cache.BLOCK: 48, Cache.PAGED: 64}
DECODE_PAIR_SOURCE_BYTES = 16
DECODE_ROWS = (8, 16, 32)
# Float accumulators and Q of a thread; more than this and Q stays in shared memory.
DECODE_RESIDENT_REGISTERS = 112

SM90_PACKED_HEADS = 16  # a warp writes its 16 rows as whole tokens
WARPGROUP_ROWS = 64  # query rows that a Hopper warpgroup multiplies
WARPGROUP_WARPS = 4
SM90_TABLE_BARRIERS = 4  # of the tables of row addresses, of K and of V: written and read
SM90_BARRIER_BYTES = 8
SM90_ITEM_BYTES = 56
SM90_WORK_BYTES = 68  # and of each row group:
SM90_SEEN_BYTES = 12
SM90_PART_COLUMNS = 8  # floats of a row: (reference, sum) of each of the four threads that have it
SM90_ALIGNMENT = 1024  # bytes: that of a swizzled panel


def has_pairs(kv_dtype: KvDtype) -> bool:
    """Whether each row of a cache has a (scale, zero) pair."""
    return kv_dtype in (KvDtype.INT8, KvDtype.INT4)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a CTA is shaped.

    cta_q: query rows of a CTA (reduction: rows that it merges; writer: rows that it writes).
    cta_s: keys of a tile. stages: tiles of K and V in shared memory. ctas_per_sm: what
    __launch_bounds__ leaves registers for. shared_bytes: dynamic shared memory. persistent: a CTA
    takes tiles until none is left. packed_heads: most query heads of a group that its rows may
    belong to. Of sm90 only: query_slots, tiles of Q in shared memory, more than 1 where the next
    arrives while one is computed; key_groups, warpgroups that share the keys of the same rows;
    softmax, which of sm90::SoftmaxForm; code_stages, tiles of K and V in codes, over a quantised
    cache. Of writers only: lanes, threads of a row.
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
    key_groups: int = 1
    softmax: str = ""
    code_stages: int = 0
    lanes: int = 0

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.warps * WARP_THREADS


def tilings(config: AttentionConfig) -> dict[str, Tiling]:
    """Every tile that a configuration can be compiled with, by its name axis; "" is the default."""
    if config.mode is Mode.REDUCE:
        return {"": Tiling(REDUCE_WARPS, 0, REDUCE_WARPS, 0, ctas_per_sm=4, shared_bytes=0)}
    if config.mode is Mode.WRITE:
        return {"": _write(config)}
    if config.mode is Mode.DECODE:
        return _decode(config)
    if config.arch is Arch.SM90:
        return _sm90_prefill(config)
    return _sm80_prefill(config)


def tiling(config: AttentionConfig) -> Tiling:
    """The tile that the configuration names.

    Raises KeyError for a tile word that `tilings` does not list; a rule of `space` refuses it.
    """
    return tilings(config)[config.tile]


def _sm80_prefill(config: AttentionConfig) -> dict[str, Tiling]:
    """The default fits 99 KiB with two stages, so that every device from 8.0 on runs it.

    Up to 128 columns, a warp holds 32 rows: each fragment of K and V read from shared memory then
    feeds two products. Up to 64, there is room for 128 keys, and a longer tile has less to do
    between products. Wider outputs leave registers for 16 rows only, and shared memory for 32 keys;
    where a CTA may take more (8.0, 9.0, 10.0), equal widths up to 192 have a large tile of 64 keys,
    a sixth faster, unless their cache is quantised.
    """
    is_equal = config.head_dim == config.head_dim_v and config.kv_dtype is KvDtype.SAME
    width = max(_padded(config.head_dim), _padded(config.head_dim_v))
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


def _write(config: AttentionConfig) -> Tiling:
    """A row is read by as many threads as it has pieces of 16 bytes, rounded up to a power of two;
    cta_q counts rows, each of one token and head. Shared memory holds where they go. A thread has
    one row of K and of V: many small CTAs, some of which load while others compute and store, were
    up to 15 % faster than four rows a thread, where all of a GPU do the same at a time."""
    pieces = max(config.head_dim, config.head_dim_v) * ELEMENT_BYTES // 16
    lanes = 1 << max(pieces - 1, 0).bit_length()
    rows = WRITE_WARPS * WARP_THREADS // lanes
    return Tiling(
        rows,
        cta_s=0,
        warps=WRITE_WARPS,
        stages=0,
        ctas_per_sm=8,
        shared_bytes=rows * WRITE_PLACE_BYTES * (2 if has_pairs(config.kv_dtype) else 1),
        lanes=lanes,
    )


def _decode(config: AttentionConfig) -> dict[str, Tiling]:
    """Rows of q on the narrow side of the products, keys on the wide one.

    The default holds 8 rows and a ring of 96 KiB, which leaves room for two CTAs on an SM of 227
    KiB and fits devices with 99. Wide groups take 16 or 32 rows, so that K and V are read once; a
    call with few sequences takes one CTA per SM, whose ring holds twice the stages: fewer splits
    then keep as many bytes in flight. Rows of 256 leave a stage to two warps.
    """
    if config.kv_dtype is not KvDtype.SAME:
        return _decode_codes(config)
    width = _padded(config.head_dim)
    warps = 4 if width <= 192 else 2
    stages = DECODE_RING_BYTES // (warps * _decode_unit_bytes(config))
    tiles = {"": _decode_sized(config, rows=8, warps=warps, stages=stages, ctas_per_sm=2)}
    keys = warps * DECODE_UNIT_TOKENS
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


def _decode_codes(config: AttentionConfig) -> dict[str, Tiling]:
    """Tiles of quantised caches. The same bytes take more arithmetic, which four CTAs of an SM
    hide better than two of twice the ring (int4: by a quarter); more rows, or wider ones, leave
    registers for two. A call of few sequences gained nothing from one CTA with a deeper ring.
    """
    width = _padded(config.head_dim)
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
    widest = 192 if config.kv_dtype is KvDtype.INT4 else 256  # for which registers suffice
    for rows in DECODE_ROWS[1:]:
        if width <= widest and rows * width <= 16 * 256:
            tiles[f"t{rows}x{keys}"] = tile(rows, 2)
    return tiles


def _decode_unit_bytes(config: AttentionConfig) -> int:
    """K and V rows of 16 tokens, and their (scale, zero) pairs. Narrow rows of codes share a line
    of shared memory (sm80::PackedTile)."""
    row = config.head_dim * KV_BITS[config.kv_dtype] // 8
    if config.kv_dtype is KvDtype.SAME or ROW_BYTES % row:
        row = _round_up(row, ROW_BYTES)
    pairs = 2 * DECODE_UNIT_TOKENS * PAIR_BYTES if has_pairs(config.kv_dtype) else 0
    return 2 * DECODE_UNIT_TOKENS * row + pairs


def _decode_sized(
    config: AttentionConfig, *, rows: int, warps: int, stages: int, ctas_per_sm: int, units: int = 1
) -> Tiling:
    """Adds the shared memory of sm80::DecodeStorage: the rings, Q where registers do not hold it,
    (max, sum) of each warp and row, what the warps count, and what the CTA works on."""
    width = _padded(config.head_dim)
    resident = rows * (config.head_dim + config.head_dim // 2) // 32 <= DECODE_RESIDENT_REGISTERS
    query = 0 if resident else rows * width * ELEMENT_BYTES
    counts = warps * rows * 8 + DECODE_CHUNKS * 4 + warps * DECODE_COUNT_BYTES
    work = warps * (stages + 2) * DECODE_SEGMENT_BYTES + DECODE_WORK_BYTES
    source = DECODE_SOURCE_BYTES[config.cache or Cache.PAGED]
    source += DECODE_PAIR_SOURCE_BYTES if has_pairs(config.kv_dtype) else 0
    in_registers = rows == DECODE_ROWS[0] and ctas_per_sm <= 2
    sources = 0 if in_registers else _round_up(warps * source, 128)
    work += warps * rows * DECODE_ROW_BYTES + sources
    ring = warps * stages * units * _decode_unit_bytes(config)
    return Tiling(
        cta_q=rows,
        cta_s=warps * units * DECODE_UNIT_TOKENS,
        warps=warps,
        stages=stages,
        ctas_per_sm=ctas_per_sm,
        shared_bytes=_round_up(ring + query + counts + work, 128),
    )


def _sized(
    config: AttentionConfig, *, cta_q: int, cta_s: int, warps: int, ctas_per_sm: int
) -> Tiling:
    """Adds the shared memory of sm80::PrefillStorage: codes, Q (later the output), the rings of K
    and V, what the warps see, what the CTA works on."""
    stages = 2
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    is_plain = config.kv_dtype is KvDtype.SAME
    codes = 0 if is_plain else _code_tile_bytes(config, cta_s)
    query = cta_q * max(width, width_v)
    ring = (stages if is_plain else 1) * cta_s * (width + width_v)
    seen = _round_up(warps * WARP_KEYS_BYTES, ROW_BYTES)
    shared_bytes = codes + (query + ring) * ELEMENT_BYTES + seen + QUERY_TILE_BYTES
    return Tiling(cta_q, cta_s, warps, stages, ctas_per_sm, shared_bytes)


def _code_tile_bytes(config: AttentionConfig, cta_s: int) -> int:
    """sm80::CodeTiles: a tile of K and of V in codes, (scale, zero) pairs and where they come
    from."""
    row = _round_up(config.head_dim * KV_BITS[config.kv_dtype] // 8, ROW_BYTES)
    pairs = ROW_BYTES + 2 * cta_s * PAIR_BYTES if has_pairs(config.kv_dtype) else 0
    return 2 * cta_s * row + pairs


def _sm90_prefill(config: AttentionConfig) -> dict[str, Tiling]:
    """The default tile first. Each was the fastest for some lengths on an H200.

    Tiles of 64 rows have one warpgroup: where few rows are asked for, they fill more of the
    machine, and with two that share the keys (k2) a row is done sooner. Up to 64 columns, four
    warpgroups of 64 keys keep the exponentials busiest; three of 128 keys come within 2 % for long
    full attention. Up to 128, taking the exponentials before the maximum is known hides the
    reduction; in place they cost less per tile, which short sequences feel. A third slot of Q,
    where there is room, lets the next Q arrive while an output leaves. Wider heads have no room
    for a second.
    """
    if config.kv_dtype is not KvDtype.SAME:
        return _sm90_codes(config)
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
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


def _sm90_codes(config: AttentionConfig) -> dict[str, Tiling]:
    """Tiles over quantised caches: what fits beside a block of K and of V in codes. Narrow heads
    share what is expanded among three warpgroups (0.81 of the speed of bf16 rather than 0.68)."""
    width = _padded(config.head_dim)
    if width <= 64:
        return {"": _sm90_sized(config, 192, 64, stages=4, query_slots=2, code_stages=3)}
    if width <= 128:
        return {"": _sm90_sized(config, 128, 128, stages=2, query_slots=2, code_stages=1)}
    if width <= 192:
        return {"": _sm90_sized(config, 128, 64, stages=2, query_slots=2, code_stages=1)}
    return {"": _sm90_sized(config, 128, 48, stages=2, query_slots=1, code_stages=1)}


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
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    if width_v > width:
        query_slots = 1
    elif width_v <= PANEL:
        query_slots = max(query_slots, 2)
    query = query_slots * cta_q * width
    ring = stages * cta_s * (width + width_v)
    staging = cta_q * _round_up(width_v // 2, PANEL) if query_slots == 1 else 0
    row_groups = cta_q // WARPGROUP_ROWS
    barriers = 2 * query_slots * row_groups + 4 * (stages + code_stages) + 4
    bookkeeping = barriers * SM90_BARRIER_BYTES
    bookkeeping += 2 * (SM90_WORK_BYTES + row_groups * SM90_SEEN_BYTES)
    bookkeeping += max(query_slots, 2) * row_groups * SM90_ITEM_BYTES
    if config.kv_dtype is not KvDtype.SAME:
        row = _round_up(config.head_dim * KV_BITS[config.kv_dtype] // 8, ROW_BYTES)
        pair = PAIR_BYTES if has_pairs(config.kv_dtype) else 0
        bookkeeping += code_stages * 2 * cta_s * (row + pair)
    elif config.cache is not Cache.LINEAR:
        bookkeeping += cta_s * ROW_ADDRESS_BYTES + SM90_TABLE_BARRIERS * SM90_BARRIER_BYTES
    parts = (key_groups - 1) * cta_q * (_round_up(width_v, PANEL) + SM90_PART_COLUMNS)
    shared_bytes = (query + ring + staging) * ELEMENT_BYTES + parts * FLOAT_BYTES
    shared_bytes += _round_up(bookkeeping, SM90_ALIGNMENT)
    producers = 2 if code_stages else 1
    warps = (row_groups * key_groups + producers) * WARPGROUP_WARPS
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
        code_stages=code_stages,
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _padded(columns: int) -> int:
    return _round_up(columns, PANEL)
