# SPDX-License-Identifier: Apache-2.0
"""A plan for the workspace that a caller has, which may be less than the call would like.

The C++ twin is attn/plan_within.h: same integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, Problem, SplitKind, SplitPolicy
from attn_runtime.splits import MAX_SPLITS

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

    def plan_of(bound: int) -> Plan:
        return make(problem, device, kernel, replace(policy, max_split_k=bound))

    found = plan_of(policy.max_split_k)
    if have is None or found.workspace_bytes <= have or policy.kind is not SplitKind.HEURISTIC:
        return found
    return plan_of(splits_that_fit(have, policy.max_split_k, plan_of))


def splits_that_fit(have: int, max_split_k: int, plan_of: Callable[[int], Plan]) -> int:
    """The largest bound of splits, below max_split_k where that is set, whose plan takes at most
    `have` bytes of workspace; 1 where no other does. A larger bound takes no less."""
    fits, too_many = 1, max_split_k or MAX_SPLITS
    while too_many - fits > 1:
        bound = (fits + too_many) // 2
        if plan_of(bound).workspace_bytes <= have:
            fits = bound
        else:
            too_many = bound
    return fits
