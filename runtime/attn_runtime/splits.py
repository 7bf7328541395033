# SPDX-License-Identifier: Apache-2.0
"""Into how many splits the keys of a query tile are cut, and which keys those are.

The C++ twins are attn/splits.h, and split.cuh of the keys: same names, integers and messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attn_runtime.cost import (
    MOST_KEYS,
    MOST_ROW_BYTES,
    MOST_TILES,
    Work,
    bounded,
    estimate_ns,
    slots_of,
)
from attn_runtime.problem import (
    DeviceLimits,
    KernelLimits,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    ceil_div,
)
from attn_runtime.tiles import key_span, local_keys, pieces_of_span, q_tiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from attn_runtime.plan import Plan

MAX_SPLITS = 2**16
"""Of equal splits: the products that cut them (split.cuh) stay below 2^32."""

MAX_HEURISTIC_SPLITS = 128

FULL_WAVES = 8
"""Tiles for so many waves leave too little of the device idle for splits to win."""


def work_of(problem: Problem, kernel: KernelLimits) -> Work:
    """What a packed call has to do if its sequences are equally long, as long as the bounds allow.

    Under a causal mask the first of T query tiles sees what lies before the queries and its own
    rows, the last one everything.
    """
    q_len = min(ceil_div(problem.token_num, max(problem.batch_size, 1)), problem.max_q_len)
    tiles = problem.batch_size * ceil_div(q_len, kernel.cta_q)
    room = q_tiles(problem, kernel.cta_q).total
    span = key_span(problem, kernel.cta_q)
    longest = shortest = pieces_of_span(problem, span, kernel.cta_s)
    if problem.causal:
        before = max(local_keys(problem) - ceil_div(q_len, problem.cp_size), 0)
        shortest = min(ceil_div(min(before + kernel.cta_q, span), kernel.cta_s), longest)
    return bounded(
        Work(
            tiles=min(tiles, room) * problem.num_heads,
            shortest=shortest,
            longest=longest,
            rows=problem.token_num * problem.num_heads,
            row_bytes=4 * (problem.head_dim_v + 2) * kernel.packed_heads,
            read_bytes=_read_bytes(problem),
            grid=room * problem.num_heads,
        )
    )


def _read_bytes(problem: Problem) -> int:
    """Of K and V that some query sees, each read once."""
    heads = min(problem.batch_size * problem.num_kv_heads, MOST_TILES)
    keys = min(heads * key_span(problem, min(problem.max_q_len, problem.token_num)), MOST_KEYS)
    return keys * min(problem.key_bytes, MOST_ROW_BYTES)


def works_of(problem: Problem, kernel: KernelLimits) -> tuple[Work, ...]:
    """What a packed call may have to do; the least comes last.

    Fewer tokens than batch_size max_q_len are of sequences whose queries differ in number, as their
    keys will. Of these only the bound is known, and it may be that of most sequences or of the one
    with the most queries, beside which the others are nothing.
    """
    work = work_of(problem, kernel)
    most = min(problem.max_q_len, problem.token_num)
    if problem.token_num >= problem.batch_size * most:
        return (work,)
    longest = replace(problem, batch_size=1, token_num=most)
    alone = replace(work_of(longest, kernel), rows=work.rows, grid=work.grid)
    return replace(work, is_mixed=True), alone


def expected_ns(
    works: Sequence[Work], device: DeviceLimits, kernel: KernelLimits, splits: int
) -> int:
    """What a call is estimated to take, over all that it may have to do: each is as likely."""
    return sum(estimate_ns(work, device, kernel, splits) for work in works)


def heuristic_splits(
    works: Sequence[Work], device: DeviceLimits, kernel: KernelLimits, max_split_k: int = 0
) -> int:
    """The count that is estimated fastest; of equals, the least. A count that does not shorten the
    longest split is passed over.

    With max_split_k set to the count found, the count is found again.
    """
    if works[-1].tiles >= FULL_WAVES * slots_of(device, kernel):
        return 1
    longest = works[0].longest
    most = min(longest, MAX_HEURISTIC_SPLITS)
    if max_split_k > 0:
        most = min(most, max_split_k)
    best, least = 1, expected_ns(works, device, kernel, 1)
    for splits in range(2, most + 1):
        if ceil_div(longest, splits) < ceil_div(longest, splits - 1):
            taken = expected_ns(works, device, kernel, splits)
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
        bound = heuristic_splits(works_of(problem, kernel), device, kernel, cap)
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
