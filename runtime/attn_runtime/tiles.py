# SPDX-License-Identifier: Apache-2.0
"""The tiles of a call: rows of queries that a CTA takes, and the keys that they see.

Bounds of lengths are all that is known. The C++ twin is attn/tiles.h: same names and integers.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import NamedTuple

from attn_runtime.cost import slots_of
from attn_runtime.problem import (
    DeviceLimits,
    KernelLimits,
    KeySharding,
    Problem,
    SplitKind,
    SplitPolicy,
    ceil_div,
)

SECTION_BYTES = 2**23
"""K and V of the heads whose tiles are computed together, under a causal mask."""
LEAST_HEADS = 16
"""Heads of a section, where CTAs take one tile after another under a causal mask."""

MOST_PADDED_HEADS = 16
"""Rows of a token at most, where some of them are nobody's."""


class QTiles(NamedTuple):
    """Tiles of one head, or pack of heads; of each sequence, or 0 where that takes a search."""

    total: int
    per_sequence: int


def pack_heads(
    problem: Problem, kernel: KernelLimits, policy: SplitPolicy
) -> tuple[Problem, KernelLimits]:
    """The call as its tiles see it: a pack of heads is one head, a tile has cta_q tokens.

    As many heads of a group are packed as the kernel can and as divide the group: they read the
    same keys, so short queries fill a tile, and no row of a long one is worse off. The bits of a
    row depend on it, so it depends on nothing that a batch or a bound of lengths changes; but where
    the planner may choose, and all queries of a sequence fit into one tile so, the whole group is
    packed. Splits are merged by clusters where it may choose, too, and there is no part to leave.
    """
    group = problem.num_heads // problem.num_kv_heads
    padded = _padded_heads(problem, kernel, policy)
    heads = group if padded else gcd(group, kernel.packed_heads)
    rows = max(padded, heads)
    may_merge = policy.kind is SplitKind.HEURISTIC and problem.cp_size == 1
    return (
        replace(problem, num_heads=problem.num_heads // heads),
        replace(
            kernel,
            cta_q=kernel.cta_q // rows,
            packed_heads=rows,
            merged_splits=kernel.merged_splits if may_merge else 1,
        ),
    )


def _padded_heads(problem: Problem, kernel: KernelLimits, policy: SplitPolicy) -> int:
    """Rows of a token whose heads, a whole group, are padded to a power of two; 0 where a tile has
    not the room for the longest queries, or the caller has said how keys are split."""
    may_choose = policy.kind is SplitKind.HEURISTIC or (
        policy.kind is SplitKind.OFF and policy.max_split_k == 1
    )
    group = problem.num_heads // problem.num_kv_heads
    heads = 1 << (min(group, MOST_PADDED_HEADS) - 1).bit_length()
    fits = (
        group <= heads <= kernel.packed_heads
        and problem.causal
        and min(problem.max_q_len, problem.token_num) * heads <= kernel.cta_q
    )
    return heads if may_choose and fits else 0


def q_tiles(problem: Problem, cta_q: int) -> QTiles:
    """Tiles of cta_q rows never span two sequences. Two grids have room for every mixture of
    lengths:

    by the longest:   batch_size * ceil(max_q_len / cta_q)
    by the tokens:    floor((token_num + batch_size (cta_q - 1)) / cta_q)

    and the smaller one is taken; on a tie the first, which finds its sequence without a search.
    """
    batch = problem.batch_size
    per_sequence = ceil_div(min(problem.max_q_len, problem.token_num), cta_q)
    by_longest = batch * per_sequence
    by_tokens = (problem.token_num + batch * (cta_q - 1)) // cta_q
    if by_longest <= by_tokens:
        return QTiles(by_longest, per_sequence if batch else 0)
    return QTiles(by_tokens, 0)


def local_keys(problem: Problem) -> int:
    """Most keys of a sequence that one rank has (attn/key_range.cuh says which). For length L, n
    ranks and chunks of c keys:

    interleaved   floor(L / (c n)) c + min(L mod (c n), c)     rank 0 has the most
    contiguous    ceil(L / n)
    zig-zag       min(L, 2 ceil(L / (2 n)))
    """
    length, ranks, chunk = problem.max_k_len, problem.cp_size, problem.cp_chunk
    if problem.cp_sharding is KeySharding.INTERLEAVED:
        rounds, rest = divmod(length, chunk * ranks)
        return rounds * chunk + min(rest, chunk)
    if problem.cp_sharding is KeySharding.CONTIGUOUS:
        return ceil_div(length, ranks)
    return min(length, 2 * ceil_div(length, 2 * ranks))


def key_span(problem: Problem, cta_q: int) -> int:
    """Most keys that one query tile sees. Its rows stand at cta_q consecutive positions, and the
    row at position p sees

    causal, window w:   p - w < j <= p       w + cta_q - 1 keys together
    full, window w:     p - w < j < p + w    2 w + cta_q - 2
    """
    window = problem.window_size
    if window == 0:
        return local_keys(problem)
    seen = window + cta_q - 1 if problem.causal else 2 * window + cta_q - 2
    return min(local_keys(problem), seen)


def pieces_of_span(problem: Problem, span: int, size: int) -> int:
    """Pieces of `size` keys, counted from key 0, that `span` consecutive keys touch when they may
    start anywhere: floor((span + size - 2) / size) + 1, and never more than there are."""
    if span == 0:
        return 0
    return min((span + size - 2) // size + 1, ceil_div(local_keys(problem), size))


def columns_of(problem: Problem, tiles: QTiles) -> int:
    """Columns of tiles: the heads of each sequence, or of all (attn/cta_map.cuh)."""
    return problem.num_heads * (problem.batch_size if tiles.per_sequence else 1)


def section_of(problem: Problem, device: DeviceLimits, kernel: KernelLimits, tiles: QTiles) -> int:
    """Heads, of one sequence or of all (attn/cta_map.cuh, sm90/tile_order.cuh), whose tiles are
    computed together.

    Their K and V stay in L2, where tile after tile finds them: without a mask the heads of one
    group, under a causal mask, where the longest tiles of a section come first, as many as have K
    and V in 8 MiB. K is taken to be as wide as V.

    CTAs that take one tile after another end together by themselves; under a causal mask they get
    16 heads at least, so that few of them share one (measured on H100 and H200). One CTA for each
    tile ends when its tile does: there a section has three tiles for every two CTAs at least, so
    that the last one ends evenly, and sections are as even as can be.
    """
    heads = problem.num_heads
    columns = columns_of(problem, tiles)
    rows = tiles.per_sequence or tiles.total
    takes_tiles = kernel.tile_counters > 0
    section = heads // problem.num_kv_heads
    if problem.causal:
        keys = max(local_keys(problem), 1)
        least = (
            LEAST_HEADS // kernel.packed_heads
            if takes_tiles
            else ceil_div(3 * slots_of(device, kernel), 2 * rows)
        )
        section = max(section * (SECTION_BYTES // (4 * problem.head_dim_v) // keys), least)
    section = max(section, 1)
    if takes_tiles:
        return min(section, columns)
    return ceil_div(columns, max(columns // section, 1))
