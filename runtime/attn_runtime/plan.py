# SPDX-License-Identifier: Apache-2.0
"""How a call is cut into CTAs: tiles of query rows, splits of keys, workspace.

Pure: no device is asked, and lengths are known by their bounds only, so that a captured launch
stays right when lengths change within them. The C++ twin is attn/plan.h: same names, integers and
messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from attn_runtime.cost import Work, bounded, estimate_ns, slots_of
from attn_runtime.problem import (
    CpForm,
    DeviceLimits,
    KernelLimits,
    KeySharding,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    check,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CpForm",
    "DeviceLimits",
    "KernelLimits",
    "KeySharding",
    "Plan",
    "PlanError",
    "Problem",
    "SplitKind",
    "SplitPolicy",
    "plan",
    "split_count",
    "split_range",
]

MAX_BYTES = 2**63 - 1

REDUCE_ROWS_PER_CTA = 4
"""One warp reduces one row, four rows to a CTA of 128 threads."""

WORKSPACE_ALIGNMENT = 256

MAX_SPLITS = 2**16
"""Of equal splits: the products that cut them (split.cuh) stay below 2^32."""

MAX_HEURISTIC_SPLITS = 128

FULL_WAVES = 8
"""Tiles for so many waves leave too little of the device idle for splits to win."""


@dataclass(frozen=True, slots=True)
class RangePlan:
    """Which CTA of a decode kernel computes what; the fields are those of attn::RangePlan."""

    ctas: int = 0
    columns: int = 0
    ranges: int = 0
    group: int = 0
    row_heads: int = 0
    head_tiles: int = 0
    row_slots: int = 0
    pieces: int = 0
    aligned_units: int = 0
    streamed_units: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The grid, the splits and the workspace of one call; the fields are those of attn::Plan.

    `q_tiles` counts those of one head, or of one pack: `packed_heads` heads of a group share a tile
    of `cta_q` tokens. `tiles_per_sequence` 0: found from cu_q_len by search. `split_tiles` 0: equal
    splits; n: chunks of n key tiles. `grid_x` 0: nothing to launch. `workspace_bytes` 0: no
    reduction. `cp_stride` floats lie between the parts of two ranks. Of decode alone: `ranges`, and
    `counter_cnt`, the ints of AttentionParams.counters.
    """

    q_tiles: int
    tiles_per_sequence: int
    split_cnt: int
    split_tiles: int
    cta_q: int
    cta_s: int
    packed_heads: int
    grid_x: int
    threads: int
    shared_bytes: int
    partial_O_bytes: int
    partial_ML_offset: int
    cp_O_offset: int
    cp_ML_offset: int
    cp_stride: int
    workspace_bytes: int
    reduce_grid_x: int
    ranges: RangePlan = RangePlan()  # frozen
    counter_cnt: int = 0


def plan(problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy) -> Plan:
    """Plan one call.

    Raises PlanError that names the field: a value out of range, a split size that needs more splits
    than the workspace holds, or a grid that no device can launch.
    """
    check(problem, device, kernel, policy)
    packed, kernel = pack_heads(problem, kernel)
    tiles = _q_tiles(packed, kernel.cta_q)
    sized = policy.kind is SplitKind.FIXED_SIZE
    split_tiles = ceil_div(policy.value, kernel.cta_s) if sized else 0
    splits, grid = 1, 0
    if tiles.total:
        fewer = "send fewer tokens at a time"
        check_grid(tiles.total, device, "token_num", fewer)
        check_grid(tiles.total * packed.num_heads, device, "token_num", fewer)
        splits = split_bound(packed, device, kernel, policy, split_tiles)
        grid = tiles.total * packed.num_heads * splits
        request = "split_size" if sized else "split_cnt"
        check_grid(grid, device, request, "split less, or send fewer tokens at a time")
    workspace = split_workspace(problem, device, splits) if tiles.total else Workspace()
    return Plan(
        q_tiles=tiles.total,
        tiles_per_sequence=tiles.per_sequence,
        split_cnt=splits,
        split_tiles=split_tiles,
        cta_q=kernel.cta_q,
        cta_s=kernel.cta_s,
        packed_heads=kernel.packed_heads,
        grid_x=grid,
        threads=kernel.threads,
        shared_bytes=kernel.shared_bytes,
        partial_O_bytes=workspace.partial_O_bytes,
        partial_ML_offset=workspace.partial_ML_offset,
        cp_O_offset=workspace.cp_O_offset,
        cp_ML_offset=workspace.cp_ML_offset,
        cp_stride=workspace.cp_stride,
        workspace_bytes=workspace.total_bytes,
        reduce_grid_x=workspace.reduce_grid_x,
    )


def split_count(begin: ArrayLike, end: ArrayLike, plan: Plan) -> NDArray[np.int64]:
    """Splits with keys of a query tile that sees the key tiles [begin, end).

    The twin of split.cuh, over arrays.
    """
    import numpy as np

    first, last = np.asarray(begin, np.int64), np.asarray(end, np.int64)
    if plan.split_tiles > 0:
        count = (last - 1) // plan.split_tiles + 1 - first // plan.split_tiles
    else:
        count = np.minimum(plan.split_cnt, last - first)
    return np.where(last > first, count, 0)


def split_range(
    begin: ArrayLike, end: ArrayLike, plan: Plan, split: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Key tiles [first, last) of a split; (end, end) where it has none.

    The twin of split.cuh, over arrays.

    equal splits, T = end - begin tiles into n:   begin + [floor(s T / n), floor((s + 1) T / n))
    chunk c = floor(begin / split_tiles) + s:     [c split_tiles, (c + 1) split_tiles), clipped
    """
    import numpy as np

    first, last = np.asarray(begin, np.int64), np.asarray(end, np.int64)
    index = np.asarray(split, np.int64)
    count = split_count(first, last, plan)
    if plan.split_tiles > 0:
        chunk = (first // plan.split_tiles + index) * plan.split_tiles
        low = np.maximum(chunk, first)
        high = np.minimum(chunk + plan.split_tiles, last)
    else:
        shares = np.maximum(count, 1)
        low = first + index * (last - first) // shares
        high = first + (index + 1) * (last - first) // shares
    return np.where(index < count, low, last), np.where(index < count, high, last)


class _QTiles(NamedTuple):
    total: int
    per_sequence: int


class Workspace(NamedTuple):
    """Where what lies in a workspace, in bytes."""

    partial_O_bytes: int = 0
    partial_ML_offset: int = 0
    cp_O_offset: int = 0
    cp_ML_offset: int = 0
    cp_stride: int = 0
    total_bytes: int = 0
    reduce_grid_x: int = 0


def pack_heads(problem: Problem, kernel: KernelLimits) -> tuple[Problem, KernelLimits]:
    """The call as its tiles see it: a pack of heads is one head, a tile has cta_q tokens.

    As many heads of a group are packed as the kernel can and as divide the group: they read the
    same keys, so short queries fill a tile, and no row of a long one is worse off. The bits of a
    row depend on it, so it depends on nothing that a batch or a bound of lengths changes.
    """
    heads = gcd(problem.num_heads // problem.num_kv_heads, kernel.packed_heads)
    return (
        replace(problem, num_heads=problem.num_heads // heads),
        replace(kernel, cta_q=kernel.cta_q // heads, packed_heads=heads),
    )


def _q_tiles(problem: Problem, cta_q: int) -> _QTiles:
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
        return _QTiles(by_longest, per_sequence if batch else 0)
    return _QTiles(by_tokens, 0)


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


def work_of(problem: Problem, kernel: KernelLimits) -> Work:
    """What a packed call has to do if its sequences are equally long, as long as the bounds allow.

    Under a causal mask the first of T query tiles sees what lies before the queries and its own
    rows, the last one everything.
    """
    q_len = min(ceil_div(problem.token_num, max(problem.batch_size, 1)), problem.max_q_len)
    tiles = problem.batch_size * ceil_div(q_len, kernel.cta_q)
    span = key_span(problem, kernel.cta_q)
    longest = shortest = pieces_of_span(problem, span, kernel.cta_s)
    if problem.causal:
        before = max(local_keys(problem) - ceil_div(q_len, problem.cp_size), 0)
        shortest = min(ceil_div(min(before + kernel.cta_q, span), kernel.cta_s), longest)
    return bounded(
        Work(
            tiles=min(tiles, _q_tiles(problem, kernel.cta_q).total) * problem.num_heads,
            shortest=shortest,
            longest=longest,
            rows=problem.token_num * problem.num_heads,
            row_bytes=4 * (problem.head_dim_v + 2) * kernel.packed_heads,
        )
    )


def heuristic_splits(
    work: Work, device: DeviceLimits, kernel: KernelLimits, max_split_k: int = 0
) -> int:
    """The count that is estimated fastest; of equals, the least. A count that does not shorten the
    longest split is passed over.

    With max_split_k set to the count found, the count is found again.
    """
    if work.tiles >= FULL_WAVES * slots_of(device, kernel):
        return 1
    most = min(work.longest, MAX_HEURISTIC_SPLITS)
    if max_split_k > 0:
        most = min(most, max_split_k)
    best, least = 1, estimate_ns(work, device, kernel, 1)
    for splits in range(2, most + 1):
        if ceil_div(work.longest, splits) < ceil_div(work.longest, splits - 1):
            taken = estimate_ns(work, device, kernel, splits)
            if taken < least:
                best, least = splits, taken
    return best


def split_bound(
    problem: Problem,
    device: DeviceLimits,
    kernel: KernelLimits,
    policy: SplitPolicy,
    split_tiles: int,
) -> int:
    """Upper bound of the splits of any query tile, at least 1, in any batch within the bounds."""
    span = key_span(problem, kernel.cta_q)
    tiles = pieces_of_span(problem, span, kernel.cta_s)
    cap = policy.max_split_k
    bound = 1
    if policy.kind is SplitKind.HEURISTIC:
        bound = heuristic_splits(work_of(problem, kernel), device, kernel, cap)
    elif policy.kind is SplitKind.FIXED:
        bound = min(policy.value, tiles, cap or MAX_SPLITS, MAX_SPLITS)
    elif policy.kind is SplitKind.FIXED_SIZE:
        bound = pieces_of_span(problem, span, split_tiles * kernel.cta_s)
        if 0 < cap < bound:
            raise PlanError(
                "max_split_k",
                f"max_split_k is {cap}, but split_size {policy.value} cuts a sequence of max_k_len "
                f"{problem.max_k_len} into up to {bound} splits: give a larger workspace, "
                "a larger split_size or a smaller max_k_len",
            )
    return max(bound, 1)


def split_workspace(problem: Problem, device: DeviceLimits, splits: int) -> Workspace:
    """Where anything may be split: partial_O float [split_cnt, rows, head_dim_v], then, from the
    next multiple of 256 bytes, partial_ML float [split_cnt, rows, 2]; a row is a head of a token.
    Where keys are spread over ranks, from the next multiple on:

    SCALED                 (max, sum) float [cp_size, rows, 2]; from the next multiple on, O float
                           [rows, head_dim_v] of this rank alone
    COMPLETE, PART_ONLY    [cp_size] parts: O float [rows, head_dim_v], (max, sum) float [rows, 2]
    """
    if splits == 1 and problem.cp_size == 1:
        return Workspace()
    rows = problem.token_num * problem.num_heads
    reduce_ctas = ceil_div(rows, REDUCE_ROWS_PER_CTA)
    check_grid(reduce_ctas, device, "token_num", "send fewer tokens, or turn splitting off")
    rows_of_all_splits = rows * splits if splits > 1 else 0
    partial_O_bytes = rows_of_all_splits * 4 * problem.head_dim_v
    partial_ML_offset = aligned(partial_O_bytes)
    parts = Workspace(total_bytes=partial_ML_offset + rows_of_all_splits * 8)
    if problem.cp_size > 1:
        parts = _parts(problem, rows, aligned(parts.total_bytes))
    if parts.total_bytes > MAX_BYTES:
        raise PlanError(
            "token_num",
            "the split workspace exceeds 2^63 bytes: split less, or send fewer tokens",
        )
    return parts._replace(
        partial_O_bytes=partial_O_bytes,
        partial_ML_offset=partial_ML_offset,
        reduce_grid_x=reduce_ctas,
    )


def part_workspace(problem: Problem, device: DeviceLimits, workspace: Workspace) -> Workspace:
    """The workspace, and behind it the parts of the ranks, for a kernel that leaves its own."""
    rows = problem.token_num * problem.num_heads
    reduce_ctas = ceil_div(rows, REDUCE_ROWS_PER_CTA)
    check_grid(reduce_ctas, device, "token_num", "send fewer tokens")
    return _parts(problem, rows, aligned(workspace.total_bytes))._replace(
        partial_O_bytes=workspace.partial_O_bytes,
        partial_ML_offset=workspace.partial_ML_offset,
        reduce_grid_x=reduce_ctas,
    )


def _parts(problem: Problem, rows: int, begin: int) -> Workspace:
    """The parts of the ranks, from byte `begin` of the workspace on."""
    O_bytes = rows * 4 * problem.head_dim_v
    gathers_O = problem.cp_form is not CpForm.SCALED
    part_bytes = (O_bytes if gathers_O else 0) + 8 * rows
    own, end = begin + problem.cp_rank * part_bytes, begin + problem.cp_size * part_bytes
    cp_O_offset = own if gathers_O else aligned(end)
    return Workspace(
        cp_O_offset=cp_O_offset,
        cp_ML_offset=own + O_bytes if gathers_O else own,
        cp_stride=part_bytes // 4,
        total_bytes=end if gathers_O else cp_O_offset + O_bytes,
    )


def aligned(offset: int) -> int:
    """The next multiple of WORKSPACE_ALIGNMENT."""
    return ceil_div(offset, WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT


def check_grid(ctas: int, device: DeviceLimits, field: str, next_step: str) -> None:
    """Refuse a grid that cannot be launched; `field` gives it, and `next_step` is what to do."""
    if ctas > device.max_grid_x:
        raise PlanError(
            field,
            f"{field} gives a grid of {ctas} CTAs: at most {device.max_grid_x} can be launched; "
            f"{next_step}",
        )


def ceil_div(value: int, step: int) -> int:
    """The quotient, rounded up."""
    return -(-value // step)
