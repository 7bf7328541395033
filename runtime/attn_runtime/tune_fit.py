# SPDX-License-Identifier: Apache-2.0
"""From measured times to what a tile costs: the two numbers that make the model of
attn_runtime.cost fit best, moved where picks by them would lose. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attn_codegen.tuning import COST_MAX, TileCost
from attn_runtime.choose import choose
from attn_runtime.cost import slots_of
from attn_runtime.problem import DeviceLimits, KernelLimits, Problem, SplitPolicy
from attn_runtime.splits import work_of
from attn_runtime.tiles import pack_heads

FULL_WAVES: Final = 2
"""Calls of fewer waves say little about the costs on a full device."""
GAIN_PERCENT: Final = 3
"""Each tile is one more kernel to build and to ship."""
NUDGES_PERCENT: Final = (-8, -4, -2, 2, 4, 8)
"""By how much a cost may be moved at a time for the sake of the picks."""
NOISE_PERCENT: Final = 1
"""A pick that loses no more is as good as the best."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of a tile, never split, and the nanoseconds that it took."""

    problem: Problem
    ns: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One call, and what each tile, by its word, took for it unsplit."""

    problem: Problem
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Terms:
    """The model's time of an unsplit call: tiles * tile_ns + steps * step_ns."""

    tiles: float
    steps: float


def terms_of(problem: Problem, device: DeviceLimits, kernel: KernelLimits) -> Terms:
    """`even` of cost.estimate_ns, taken apart: what it says of a call that fills the device."""
    packed, limits = pack_heads(problem, kernel, SplitPolicy.off())
    work, slots = work_of(packed, limits), slots_of(device, limits)
    idle = -work.tiles % slots
    steps = work.tiles * (work.shortest + work.longest) / 2 + idle * work.shortest
    return Terms((work.tiles + idle) / slots, steps / slots)


def fills(problem: Problem, device: DeviceLimits, kernel: KernelLimits) -> bool:
    """Whether a call has tiles for FULL_WAVES waves."""
    packed, limits = pack_heads(problem, kernel, SplitPolicy.off())
    return work_of(packed, limits).tiles >= FULL_WAVES * slots_of(device, limits)


def fit_cost(samples: Iterable[Sample], device: DeviceLimits, kernel: KernelLimits) -> TileCost:
    """The costs with the least sum of squared relative errors, neither of them negative:

    minimise  sum over samples of  ((tiles tile_ns + steps step_ns) / ns - 1)^2
    """
    rows = []
    for sample in samples:
        if fills(sample.problem, device, kernel):
            terms = terms_of(sample.problem, device, kernel)
            rows.append((terms.tiles / sample.ns, terms.steps / sample.ns))
    tile, step = _least_squares(np.array(rows).reshape(-1, 2))
    return TileCost(_whole(tile), _whole(step))


def _least_squares(rows: NDArray[np.float64]) -> tuple[float, float]:
    """(x, y), neither negative, with the least sum of (a x + b y - 1)^2 over the rows (a, b)."""
    if len(rows) == 0:
        return 0.0, 0.0
    x, y = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    if x >= 0 and y >= 0:
        return float(x), float(y)
    alone = [float(column.sum() / (column @ column)) for column in rows.T]
    return (0.0, alone[1]) if x < 0 else (alone[0], 0.0)


def _whole(nanoseconds: float) -> int:
    return min(COST_MAX, max(0, round(nanoseconds)))


def worthwhile(times: Sequence[Mapping[str, float]]) -> list[str]:
    """The default tile, and those that were GAIN_PERCENT faster than the ones before them in the
    list on some shape; the largest gain comes first. `times` has the tiles of each shape."""
    kept, fastest = [""], [own[""] for own in times]
    while True:
        gains = {
            word: max(old / own[word] for old, own in zip(fastest, times, strict=True))
            for word in times[0]
            if word not in kept
        }
        best = max(gains, key=lambda word: gains[word], default="")
        if not best or gains[best] < 1 + GAIN_PERCENT / 100:
            return kept
        kept.append(best)
        fastest = [min(old, own[best]) for old, own in zip(fastest, times, strict=True)]


def settle(
    limits: Mapping[str, KernelLimits], trials: Sequence[Trial], device: DeviceLimits
) -> dict[str, KernelLimits]:
    """The kernels with their costs moved where that makes the picks lose less: two numbers cannot
    say all of a tile (memory binds short calls), and what counts is which one is taken.

    The best of all moves of one number is made as long as one lowers `loss`.
    """
    found = dict(limits)
    least = loss(found, trials, device)
    while True:
        moved = [
            {**found, word: _nudged(found[word], field, percent)}
            for word, field, percent in product(found, ("tile_ns", "step_ns"), NUDGES_PERCENT)
        ]
        losses = [loss(kernels, trials, device) for kernels in moved]
        if min(losses) >= least:
            return found
        least = min(losses)
        found = moved[losses.index(least)]


def loss(
    limits: Mapping[str, KernelLimits], trials: Sequence[Trial], device: DeviceLimits
) -> float:
    """What the picks lose to the best tile, in percent beyond the noise:  sum of squares."""
    words, kernels = list(limits), list(limits.values())
    total = 0.0
    for trial in trials:
        pick = words[choose(trial.problem, device, kernels, SplitPolicy.off())]
        best = min(trial.times[word] for word in words)
        total += max(100 * (trial.times[pick] / best - 1) - NOISE_PERCENT, 0.0) ** 2
    return total


def _nudged(kernel: KernelLimits, field: str, percent: int) -> KernelLimits:
    value = _whole(getattr(kernel, field) * (100 + percent) / 100)
    return replace(kernel, **{field: value})
