# SPDX-License-Identifier: Apache-2.0
"""How the keys of all sequences are shared out among the CTAs of a decode kernel.

The numpy twin of attn/decode_ranges.cuh, which says what columns, units and ranges are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attn_runtime.plan import RangePlan
from attn_runtime.problem import ceil_div

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class RangeCut:
    """Every `period` units are cut into `parts` ranges, the first `longer` of which hold one unit
    more than the others, which hold `units`. There are `ranges`, none of them empty."""

    ranges: int
    period: int
    parts: int
    units: int
    longer: int


def cut_column(tiles: ArrayLike, plan: RangePlan, most: int) -> RangeCut:
    """Cut a column, whose tiles have these units, into at most `most` ranges."""
    units = np.asarray(tiles, np.int64)
    units = units[units > 0]
    total = int(units.sum())
    ranges = min(most, total)
    equal = _make_cut(ranges, total, ranges)
    if ranges == 0 or units.min() != units.max() or total > plan.aligned_units * ranges:
        return equal
    count, length = len(units), int(units[0])
    parts, together = 1, 1
    if count <= ranges:
        parts = ranges // count
        longest = ceil_div(length, parts)
    else:
        together = ceil_div(count, ranges)
        longest = length * together
    if count % together or longest * 9 > ceil_div(total, ranges) * 10:
        return equal
    return _make_cut(count // together * parts, length * together, parts)


def units_of_range(cut: RangeCut, index: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units [begin, end) of each range."""
    whole, part = np.divmod(np.asarray(index, np.int64), cut.parts)
    begin = whole * cut.period + part * cut.units + np.minimum(part, cut.longer)
    return np.asarray(begin), np.asarray(begin + cut.units + (part < cut.longer))


def range_of(cut: RangeCut, unit: ArrayLike) -> NDArray[np.int64]:
    """The range that holds each unit."""
    whole, inside = np.divmod(np.asarray(unit, np.int64), cut.period)
    in_longer = cut.longer * (cut.units + 1)
    part = np.where(
        inside < in_longer,
        inside // (cut.units + 1),
        cut.longer + (inside - in_longer) // max(cut.units, 1),
    )
    return np.asarray(whole * cut.parts + part)


def _make_cut(ranges: int, period: int, parts: int) -> RangeCut:
    units, longer = divmod(period, parts) if parts else (0, period)
    return RangeCut(ranges, period, parts, units, longer)
