# SPDX-License-Identifier: Apache-2.0
"""How a decode call is cut: row tiles, CTAs, workspace, counters; and which tile runs it.

Pure, like attn_runtime.plan. The C++ twin is attn/decode_plan.h: same names, integers and messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from attn_codegen.tile import WARP_THREADS
from attn_runtime.choose import UNFIT
from attn_runtime.plan import Plan, RangePlan
from attn_runtime.problem import (
    INT_MAX,
    DeviceLimits,
    KernelLimits,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    ceil_div,
    check,
    check_grid,
)
from attn_runtime.splits import split_bound
from attn_runtime.tiles import key_span, pieces_of_span
from attn_runtime.workspace import Workspace, aligned, part_workspace, split_workspace

ALIGNED_BYTES: Final = 4 << 20
"""Up to this many bytes of K and V for each SM, tiles of one length are cut at their ends (measured
on an H200: 8 x 1k and 32 x 1k gain 7 to 10 %; with more work, idle CTAs cost more than splits)."""

STREAMED_BYTES: Final = 256 << 20
"""Up to this many bytes of K and V, L2 need not keep them (measured on an H200: 1 to 4 % faster;
beyond, slower where L2 is full of lines to be written back)."""

MOST_ROUNDS: Final = 4
"""Ranges come in as many rounds of CTAs as fill the device to 95 %, at most this many."""

MOST_PIECE_ROUNDS: Final = 16
"""Whole splits are shared out over at most as many rounds of CTAs, so that uneven ones balance."""

FEWEST_PIECE_STAGES: Final = 64
"""A round of CTAs begins only where each finds as many stages: the start of a CTA, which nothing
hides, costs as much as a few (measured on an H200: splits of 256 keys are 15 % faster than with 16
rounds, of 512 keys 3 %)."""

MOST_CLUSTERED_STAGES: Final = 6
"""Of a range in a cluster of more than two CTAs, which the device places less evenly (measured on
an H100 with 8 KV heads: 4 x 1k gains 7 %, 4 x 2k loses 1 % and 4 x 16k 3 %)."""

LONGER_STAGES: Final = 3
"""Stages by which ranges in clusters may exceed an equal share (measured on an H100: 1 x 3k gains
8 % with 6 stages for 3, 1 x 4k nothing with 8 for 4)."""

FULL_THREADS: Final = 128
"""Of a CTA whose warps, four of them, hide each other's latency."""

FEWEST_ROWS: Final = 8
"""Rows of the narrowest tile."""

DECODE_TOKENS: Final = 8
"""Query tokens of a sequence that decode kernels are made for, and the bound where none is given.
More are computed, too, a row tile at a time."""


@dataclass(frozen=True, slots=True)
class RowTiles:
    """The rows of a group that a CTA packs: `tokens` query tokens of `heads` heads.

    `query_tiles` is that of the longest sequence.
    """

    heads: int
    tokens: int
    head_tiles: int
    query_tiles: int


def row_tiles(problem: Problem, rows: int) -> RowTiles:
    """Wide groups are cut into tiles of about equal width. A sequence is never longer than
    max_q_len, so the tiles of a sequence do not depend on that bound."""
    group = problem.num_heads // problem.num_kv_heads
    longest = min(problem.max_q_len, problem.token_num)
    heads = ceil_div(group, ceil_div(group, rows))
    tokens = min(max(rows // group, 1), max(longest, 1))
    return RowTiles(heads, tokens, ceil_div(group, heads), ceil_div(longest, tokens))


def ranges_to_fill(capacity: int, columns: int) -> int:
    """Ranges of each of `columns` columns: as many as fill the device, in the fewest rounds that
    leave at most 5 % of it idle."""
    best, best_rounds = 1, max(ceil_div(columns, capacity), 1)
    for rounds in range(1, MOST_ROUNDS + 1):
        ranges = capacity * rounds // columns
        if ranges > 0 and ranges * best_rounds > best * rounds:
            best, best_rounds = ranges, rounds
        if ranges > 0 and 20 * ranges * columns >= 19 * capacity * rounds:
            return ranges
    return best


def ctas_of_heuristic(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, tiles: RowTiles
) -> int:
    """CTAs of an SM that stages are shared out to. Few sequences take one where two fit: half the
    splits are put together, and the CTAs of the next launch find room beside them (measured on an
    H200 with 8 KV heads: 1 x 4k 7 % faster, 16 x 1k 7 %, 8 x 16k 2 %; 32 x 1k 1 % slower; with 4
    query tokens 1 x 4k 14 %, with 8 of them 18 %). Tiles of more than 8 rows were measured for one
    sequence."""
    sms_of_a_tile = 1 if kernel.cta_q == FEWEST_ROWS else 16
    sequence_tiles = problem.num_kv_heads * tiles.head_tiles
    few = sms_of_a_tile * problem.batch_size * sequence_tiles <= device.sm_count
    return 1 if few and kernel.ctas_per_sm == 2 else kernel.ctas_per_sm


def cluster_of_heuristic(
    problem: Problem, kernel: KernelLimits, tiles: RowTiles, stages: int, ranges: int
) -> int:
    """CTAs of a cluster, a power of two: each sequence has so many ranges, whose parts then meet in
    shared memory. 1: there are no clusters, as where ranges would get too long. Half of the CTAs of
    one sequence find room in clusters of 8, beside those of the next launch; others do not."""
    is_plain = problem.window_size == 0 and problem.cp_size == 1 and tiles.query_tiles == 1
    if not is_plain or tiles.head_tiles > 1 or tiles.tokens > 1:
        return 1
    most = kernel.cluster_ctas if problem.batch_size == 1 else kernel.cluster_ctas // 2
    cluster = 1 << max(min(ranges // problem.batch_size, most), 1).bit_length() - 1
    longest, share = ceil_div(stages, cluster), ceil_div(problem.batch_size * stages, ranges)
    is_short = longest <= MOST_CLUSTERED_STAGES or cluster <= 2
    return cluster if is_short and longest <= share + LONGER_STAGES else 1


def plan_decode(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy
) -> Plan:
    """Plan one decode call, of a kernel that packs kernel.cta_q rows and has stages of kernel.cta_s
    keys. Raises PlanError as `plan` does.

    heuristic: equal ranges of stages, which the kernel reduces itself; its workspace and counters
    are those of the widest grid that other batches and lengths may take. fixed, fixed_size, off:
    whole splits as in prefill, and the reduction after it. A heuristic that may not split is off.
    """
    check(problem, device, kernel, policy)
    tiles = row_tiles(problem, kernel.cta_q)
    tile = replace(kernel, cta_q=tiles.tokens)  # of query tokens, as the planner of splits has it
    sized = policy.kind is SplitKind.FIXED_SIZE
    split_tiles = ceil_div(policy.value, kernel.cta_s) if sized else 0
    if problem.batch_size == 0 or tiles.query_tiles == 0:
        return _plan(tile, split_tiles, Workspace())
    columns = problem.num_kv_heads * tiles.head_tiles
    most_columns = columns * tiles.query_tiles
    check_grid(most_columns, device, "max_q_len", "give a smaller bound, or take a prefill kernel")
    shares_stages = policy.kind is SplitKind.HEURISTIC and policy.max_split_k != 1
    splits = 1 if shares_stages else split_bound(problem, device, tile, policy, split_tiles)
    stages = pieces_of_span(problem, key_span(problem, tiles.tokens), kernel.cta_s)
    units = problem.batch_size * (stages if shares_stages else splits)
    if units > INT_MAX:
        raise PlanError(
            "max_k_len",
            f"max_k_len is {problem.max_k_len}: the keys of {problem.batch_size} sequences are "
            "more than 2^31 pieces; give a smaller bound, send fewer sequences, or split less",
        )
    capacity = device.sm_count * kernel.ctas_per_sm
    ctas_per_sm = ctas_of_heuristic(problem, device, kernel, tiles)
    widest, cluster = 0, 1
    if shares_stages:
        cap = policy.max_split_k or INT_MAX
        ranges = min(ranges_to_fill(device.sm_count * ctas_per_sm, columns), cap)
        widest = min(max(ranges, ranges_to_fill(capacity, columns)), cap)
        ranges = min(ranges, max(units * tiles.query_tiles, 1))
        if kernel.cluster_ctas > 1 and ctas_per_sm == 1:
            cluster = cluster_of_heuristic(problem, kernel, tiles, stages, ranges)
            ranges = ranges if cluster == 1 else problem.batch_size * cluster
    else:
        filling = ceil_div(units * ceil_div(stages, splits), FEWEST_PIECE_STAGES)
        ranges = min(filling, MOST_PIECE_ROUNDS * capacity // columns)
        ranges = max(min(units, max(ranges, capacity // columns)), 1)
    ctas = max(ranges * columns, most_columns)
    check_grid(ctas, device, "num_heads", "split less, or send fewer heads at a time")
    shared = RangePlan(
        ctas=ctas,
        columns=columns,
        ranges=ctas // columns,
        group=problem.num_heads // problem.num_kv_heads,
        row_heads=tiles.heads,
        head_tiles=tiles.head_tiles,
        row_slots=tiles.heads * tiles.tokens,
        pieces=0 if shares_stages else 1,
    )
    common = {"q_tiles": tiles.query_tiles, "splits": splits}
    if not shares_stages:
        workspace = split_workspace(problem, device, splits)
        return _plan(tile, split_tiles, workspace, shared, **common)
    stage_bytes = 4 * kernel.cta_s * problem.head_dim_v
    shared = replace(
        shared,
        aligned_units=min(ALIGNED_BYTES // (stage_bytes * ctas_per_sm), INT_MAX),
        streamed_units=min(STREAMED_BYTES // (stage_bytes * problem.num_kv_heads), INT_MAX),
    )
    counters = 0
    workspace = Workspace()
    if ranges > 1:
        most = replace(shared, ctas=max(widest * columns, most_columns))
        workspace = _range_workspace(problem, most)
        counters = _counters(kernel, most)
    if problem.cp_size > 1:
        workspace = part_workspace(problem, device, workspace)
    planned = _plan(tile, split_tiles, workspace, shared, counters, **common)
    return replace(planned, cluster=cluster)


def _plan(
    tile: KernelLimits,
    split_tiles: int,
    workspace: Workspace,
    ranges: RangePlan = RangePlan(),  # noqa: B008  # frozen
    counters: int = 0,
    *,
    q_tiles: int = 0,
    splits: int = 1,
) -> Plan:
    return Plan(
        q_tiles=q_tiles,
        tiles_per_sequence=0,
        split_cnt=splits,
        split_tiles=split_tiles,
        cta_q=tile.cta_q,
        cta_s=tile.cta_s,
        packed_heads=1,
        section=1,
        grid_x=ranges.ctas,
        threads=tile.threads,
        shared_bytes=tile.shared_bytes,
        partial_O_bytes=workspace.partial_O_bytes,
        partial_ML_offset=workspace.partial_ML_offset,
        cp_O_offset=workspace.cp_O_offset,
        cp_ML_offset=workspace.cp_ML_offset,
        cp_stride=workspace.cp_stride,
        workspace_bytes=workspace.total_bytes,
        reduce_grid_x=workspace.reduce_grid_x,
        ranges=ranges,
        counter_cnt=counters,
    )


def _range_workspace(problem: Problem, ranges: RangePlan) -> Workspace:
    """Two places for parts of each CTA, of row_slots rows: partial_O float [2 ctas, row_slots,
    head_dim_v], then, from the next multiple of 256 bytes, partial_ML float [2 ctas, row_slots, 2].
    """
    rows = 2 * ranges.ctas * ranges.row_slots
    partial_O_bytes = rows * 4 * problem.head_dim_v
    offset = aligned(partial_O_bytes)
    return Workspace(
        partial_O_bytes=partial_O_bytes, partial_ML_offset=offset, total_bytes=offset + rows * 8
    )


def _counters(kernel: KernelLimits, ranges: RangePlan) -> int:
    """One for each range and warp; the kernel counts them and the parts in 32 bits."""
    counters = ranges.ctas * (kernel.threads // WARP_THREADS)
    if max(counters, 2 * ranges.ctas * ranges.row_slots) > INT_MAX:
        raise PlanError(
            "num_heads", "num_heads takes more than 2^31 parts of rows: turn splitting off"
        )
    return counters


def rank_decode(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy
) -> int:
    """Of the tiles of a decode kernel the one of least rank takes a call; 2^63 - 1: unfit.

    It is the least that holds the rows of a sequence of average length, so that K and V are read
    once; of those the one with more warps, which hide each other's latency. Policy fixed_size takes
    the rows of one token, so that no bound changes a bit.
    """
    check(problem, device, kernel, policy)
    if kernel.shared_bytes > device.shared_per_cta:
        return UNFIT
    tokens = 1 if policy.kind is SplitKind.FIXED_SIZE else mean_tokens(problem)
    rows = problem.num_heads // problem.num_kv_heads * tokens
    return 2 * misfit(kernel.cta_q, rows) + (kernel.threads < FULL_THREADS)


def mean_tokens(problem: Problem) -> int:
    """Query tokens of a sequence of average length, rounded up."""
    mean = ceil_div(problem.token_num, max(problem.batch_size, 1))
    return max(min(mean, problem.max_q_len), 1)


def misfit(cta_q: int, rows: int) -> int:
    """How far a tile is from the least that holds so many rows."""
    return cta_q - rows if cta_q >= rows else rows - cta_q + INT_MAX
