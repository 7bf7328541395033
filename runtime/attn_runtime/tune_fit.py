# SPDX-License-Identifier: Apache-2.0
"""From measured times to what a tile costs: the two numbers that make the model of
attn_runtime.cost fit best. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attn_codegen.tuning import COST_MAX, TileCost
from attn_runtime.choose import choose
from attn_runtime.cost import slots_of
from attn_runtime.plan import pack_heads, work_of
from attn_runtime.problem import DeviceLimits, KernelLimits, Problem, SplitPolicy

FULL_WAVES: Final = 2
"""Calls of fewer waves say little about the costs on a full device."""
LENGTHS: Final = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
TOKENS: Final = (128, 512, 1024, 2048, 4096, 8192, 16_384)


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of a tile, never split, and the nanoseconds that it took."""

    problem: Problem
    ns: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The model's time of an unsplit call: tiles * tile_ns + steps * step_ns."""

    tiles: float
    steps: float


def terms_of(problem: Problem, device: DeviceLimits, kernel: KernelLimits) -> Terms:
    """`even` of cost.estimate_ns, taken apart: what it says of a call that fills the device."""
    packed, limits = pack_heads(problem, kernel)
    work, slots = work_of(packed, limits), slots_of(device, limits)
    idle = -work.tiles % slots
    steps = work.tiles * (work.shortest + work.longest) / 2 + idle * work.shortest
    return Terms((work.tiles + idle) / slots, steps / slots)


def fills(problem: Problem, device: DeviceLimits, kernel: KernelLimits) -> bool:
    """Whether a call has tiles for FULL_WAVES waves."""
    packed, limits = pack_heads(problem, kernel)
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


def picked(
    kernels: dict[str, KernelLimits], heads: Iterable[int], like: Problem, device: DeviceLimits
) -> set[str]:
    """The tiles that some call takes: of LENGTHS and TOKENS, with any of the head counts."""
    words, limits = list(kernels), list(kernels.values())
    found = set()
    for length, tokens, num_heads in product(LENGTHS, TOKENS, heads):
        problem = Problem(
            token_num=tokens,
            batch_size=-(-tokens // length),
            max_q_len=min(length, tokens),
            max_k_len=length,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim_v=like.head_dim_v,
            causal=like.causal,
        )
        found.add(words[choose(problem, device, limits, SplitPolicy.heuristic())])
    return found
