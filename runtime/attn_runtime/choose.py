# SPDX-License-Identifier: Apache-2.0
"""Which tile a call takes, where kernels differ in their tiles alone.

The C++ twin is attn/choose.h: same names and integers.
"""

from __future__ import annotations

from collections.abc import Sequence

from attn_runtime.problem import (
    DeviceLimits,
    KernelLimits,
    Problem,
    SplitKind,
    SplitPolicy,
    check,
)
from attn_runtime.splits import MAX_HEURISTIC_SPLITS, expected_ns, heuristic_splits, works_of
from attn_runtime.tiles import pack_heads

UNFIT = 2**63 - 1
"""The rank of a kernel that the device cannot run."""


def choose(
    problem: Problem, device: DeviceLimits, kernels: Sequence[KernelLimits], policy: SplitPolicy
) -> int:
    """The index of the kernel of least rank; of equals, the first."""
    ranks = [rank(problem, device, kernel, policy) for kernel in kernels]
    return ranks.index(min(ranks))


def rank(problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy) -> int:
    """What a call is estimated to take, with the splits that `plan` would take.

    With max_split_k set to these splits, the least rank stays where it was. Raises PlanError for a
    value out of range.
    """
    check(problem, device, kernel, policy)
    if kernel.shared_bytes > device.shared_per_cta:
        return UNFIT
    if policy.kind is SplitKind.FIXED_SIZE:
        return _rank_of_keys(kernel)
    packed, kernel = pack_heads(problem, kernel, policy)
    works = works_of(packed, kernel)
    splits = 1
    if policy.kind is SplitKind.HEURISTIC:
        splits = heuristic_splits(works, device, kernel, policy.max_split_k)
    elif policy.kind is SplitKind.FIXED:
        splits = max(min(policy.value, works[0].longest, MAX_HEURISTIC_SPLITS), 1)
    return expected_ns(works, device, kernel, splits)


def _rank_of_keys(kernel: KernelLimits) -> int:
    """Of kernels with splits of a given size, the cheapest for long keys: bits may depend neither
    on the batch nor on the bounds of lengths, and so the tile may not.

    2^32 step_ns / (rows x keys of the CTAs on an SM)
    """
    return (kernel.step_ns << 32) // kernel.cta_q // kernel.cta_s // kernel.ctas_per_sm
