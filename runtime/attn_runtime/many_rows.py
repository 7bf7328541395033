# SPDX-License-Identifier: Apache-2.0
"""A decode call of many rows on a prefill kernel, whose products take 64 rows at a time.

Pure, like attn_runtime.plan. The C++ twin is attn/many_rows.h: same names and integers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from attn_runtime.choose import UNFIT, rank
from attn_runtime.decode_plan import mean_tokens
from attn_runtime.plan import Plan, plan
from attn_runtime.problem import (
    INT_MAX,
    DeviceLimits,
    KernelLimits,
    Problem,
    SplitKind,
    SplitPolicy,
)
from attn_runtime.tiles import pack_heads
from attn_runtime.workspace import aligned

MOST_DECODE_ROWS: Final = 16
"""Rows of a KV head up to which a decode kernel is as fast, where its tile holds them (H200, us of
32 rows: 1 x 4k 22.4 and 14.7 of prefill, 32 x 1k 42.1 and 37.3, 8 x 4k 45.7 and 45.5, 32 x 4k 131.4
and 133.1)."""

MOST_TILE_ROWS: Final = 128
"""Of the tiles that are tried: higher ones are for prompts."""

ROOM_ROWS: Final = 256
"""Rows of partial results, for each SM, that the splits of any batch have room in."""


def has_many_rows(
    problem: Problem, decode: KernelLimits, policy: SplitPolicy, *, over_codes: bool = False
) -> bool:
    """Whether a decode call has more rows of a KV head, in a sequence of average length, than are
    for the decode kernel that would take it: than MOST_DECODE_ROWS or, over codes, which take
    prefill longer, than its tile holds. One that says how keys are split has not."""
    rows = problem.num_heads // problem.num_kv_heads * mean_tokens(problem)
    is_free = policy.kind is SplitKind.HEURISTIC and policy.max_split_k != 1
    most = decode.cta_q if over_codes else min(decode.cta_q, MOST_DECODE_ROWS)
    return is_free and rows > most


def rank_many_rows(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy
) -> int:
    """Of the tiles of a prefill kernel the one of least rank takes a decode call of many rows;
    2^63 - 1: none does.

    A tile must have room for all heads of a group, so that K and V are read once. Ranks have all
    keys: a part is what a decode kernel leaves.
    """
    packed, _ = pack_heads(problem, kernel, policy)
    if packed.num_heads != problem.num_kv_heads or problem.cp_size != 1:
        return UNFIT
    return rank(problem, device, kernel, _within(problem, room_for(problem, device, policy)))


def room_for(problem: Problem, device: DeviceLimits, policy: SplitPolicy) -> int:
    """Rows of partial results that a plan has memory for: those of neither a batch nor lengths,
    unless a caller bounds the splits."""
    room = ROOM_ROWS * device.sm_count
    if policy.max_split_k:
        room = min(room, policy.max_split_k * problem.token_num * problem.num_heads)
    return room


def plan_many_rows(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, decode: Plan, room: int
) -> Plan:
    """Plan a decode call on a prefill kernel: it takes no more splits than have room. The memory is
    enough for the decode kernel's plan, too, so that a caller need not know who computes."""
    rows = max(room, decode.partial_O_bytes // (4 * problem.head_dim_v))
    partial_O_bytes = rows * 4 * problem.head_dim_v
    return replace(
        plan(problem, device, kernel, _within(problem, room)),
        partial_O_bytes=partial_O_bytes,
        partial_ML_offset=aligned(partial_O_bytes),
        workspace_bytes=aligned(partial_O_bytes) + rows * 8,
        ranges=decode.ranges,
        counter_cnt=max(decode.counter_cnt, kernel.tile_counters),
    )


def _within(problem: Problem, room: int) -> SplitPolicy:
    """At most as many splits as have room."""
    splits = room // max(problem.token_num * problem.num_heads, 1)
    return SplitPolicy.heuristic(max_split_k=max(min(splits, INT_MAX), 1))
