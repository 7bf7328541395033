# SPDX-License-Identifier: Apache-2.0
"""What reading memory costs on this card, in this run: the ceiling of every decode kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attn_runtime.bench.device import PIECE_BYTES, Bench
from attn_runtime.bench.timing import Call

_ROUNDS = 5
_GRIDS = (2, 4, 8)
"""CTAs per SM that are tried."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second: rows end to end, and pieces of 32 KB in random order, which is what a paged
    cache is."""

    sequential: float
    pieces: float


def measure_bandwidth(bench: Bench, array: Any) -> Bandwidth:
    """The best of several grids and rounds over an array, a multiple of 32 KB that no L2 holds."""
    count = array.nbytes // PIECE_BYTES
    order = bench.to_device(np.random.default_rng(2).permutation(count).astype(np.int32))
    sink = bench.empty((4,), "uint32")

    def best(given: Any) -> float:
        seconds = []
        for per_sm in _GRIDS:
            grid = per_sm * bench.context.device.sm_count

            def call(grid: int = grid) -> None:
                bench.read(array, given, sink, grid)

            seconds += [_seconds(bench, call) for _ in range(_ROUNDS)]
        return float(count * PIECE_BYTES / min(seconds))

    return Bandwidth(sequential=best(None), pieces=best(order))


def _seconds(bench: Bench, call: Call) -> float:
    return bench.milliseconds(call, 4, 10e-6) / 1e3
