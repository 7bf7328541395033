# SPDX-License-Identifier: Apache-2.0
"""A plan for the workspace that a caller has, which may be less than the call would like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attn_runtime.decode_plan import range_bytes
from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, Problem, SplitKind, SplitPolicy
from attn_runtime.workspace import WORKSPACE_ALIGNMENT

Planner = Callable[[Problem, DeviceLimits, KernelLimits, SplitPolicy], Plan]
"""`plan` or `plan_decode`."""


def plan_within(
    make: Planner,
    problem: Problem,
    device: DeviceLimits,
    kernel: KernelLimits,
    policy: SplitPolicy,
    have: int | None,
) -> Plan:
    """The heuristic splits no further than `have` bytes of workspace hold, None for any number;
    other policies are taken at their word. A plan that wants more than there is wants the least
    that the policy allows: the caller refuses it."""
    found = make(problem, device, kernel, policy)
    if have is None or found.workspace_bytes <= have or policy.kind is not SplitKind.HEURISTIC:
        return found
    unsplit = make(problem, device, kernel, SplitPolicy.off())
    shares_ranges = found.ranges.ctas > 0 and found.ranges.pieces == 0
    one_more = range_bytes(problem, found) if shares_ranges else _split_bytes(problem)
    # Of the pieces of a workspace, two begin at the next multiple of the alignment: try without the
    # bytes in front of them, then with all that there may be.
    for gaps in (0, 2 * (WORKSPACE_ALIGNMENT - 1)):
        most = (have - unsplit.workspace_bytes - gaps) // one_more
        if most > 1:
            fewer = make(problem, device, kernel, replace(policy, max_split_k=most))
            if fewer.workspace_bytes <= have:
                return fewer
    # Ranges of decode are no fewer than the row tiles of a column: many tokens may leave no choice.
    return unsplit


def _split_bytes(problem: Problem) -> int:
    """partial_O and partial_ML of one split."""
    return problem.token_num * problem.num_heads * 4 * (problem.head_dim_v + 2)
