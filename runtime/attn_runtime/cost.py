# SPDX-License-Identifier: Apache-2.0
"""What a launch is estimated to take, in nanoseconds: splits and tiles are chosen by it.

A model of three terms, not a simulation: it must rank choices. The C++ twin is attn/cost.h: same
names and integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from attn_runtime.problem import DeviceLimits, KernelLimits

MERGE_NS = 6500
"""The launch of the reduction behind the kernel, and the slower end of a CTA that leaves a partial
result; measured on an H100."""

MERGE_BYTES_PER_NS = 3800
"""Partial results are written, read back and merged; fitted to picks on an H200."""

READ_BYTES_PER_NS = 3700
"""K and V are read no faster by all CTAs together; of calls with few query rows, on an H200."""
CLUSTER_MERGE_NS = 5500
"""What CTAs of a cluster, which merge splits, begin and end later; fitted to picks on an H100."""

# Above these only orders of magnitude count, and no product leaves 64 bits.
MOST_TILES = 2**24
MOST_STEPS = 2**21
MOST_ROWS = 2**31 - 1
MOST_ROW_BYTES = 2**15
MOST_KEYS = 2**47


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel has to do when nothing is split.

    `tiles`: query tiles with rows, over all heads. `shortest`, `longest`: key tiles that a query
    tile sees at least and at most. `rows`, `row_bytes`: rows of the output, and what a split leaves
    of each. `read_bytes`: of K and V, together. `grid`: tiles that a launch has CTAs for, whatever
    the lengths. `is_mixed`: lengths differ.
    """

    tiles: int
    shortest: int
    longest: int
    rows: int
    row_bytes: int
    read_bytes: int
    grid: int
    is_mixed: bool = False


def bounded(work: Work) -> Work:
    """The work with every number below the one that matters no more."""
    return Work(
        min(work.tiles, MOST_TILES),
        min(work.shortest, MOST_STEPS),
        min(work.longest, MOST_STEPS),
        min(work.rows, MOST_ROWS),
        min(work.row_bytes, MOST_ROW_BYTES),
        work.read_bytes,
        min(work.grid, MOST_TILES),
        work.is_mixed,
    )


def slots_of(device: DeviceLimits, kernel: KernelLimits) -> int:
    """CTAs that the device holds at a time."""
    return min(device.sm_count * kernel.ctas_per_sm, MOST_TILES)


def is_cluster(grid: int, device: DeviceLimits, kernel: KernelLimits, splits: int) -> bool:
    """Whether the splits of a tile are the CTAs of a cluster, which merge them: all tiles of the
    grid are then computed at a time.

    A cluster lies within a part of the device, and parts are not multiples of it: of 132
    multiprocessors of an H200, clusters of 2 to 8 CTAs fill 132, 117, 120, 110, 102, 105 and 120.
    """
    eighths = 8 if splits == 2 else 7 if splits in (4, 8) else 6
    room = slots_of(device, kernel) * eighths // 8
    return 1 < splits <= kernel.merged_splits and grid * splits <= room


def estimate_ns(work: Work, device: DeviceLimits, kernel: KernelLimits, splits: int) -> int:
    """What a launch and its reduction take. `work` is bounded; splits are at most 128.

    CTAs are handed out as others end, the longest first where they differ. So all end together
    after an even share of everything, in which slots that the last wave leaves idle count as if
    they had one of the shortest; or the longest is waited for, alone on its SM by then:

    piece(n) = tile_ns + ceil(n / splits) step_ns         n key tiles
    even     = (sum of pieces + idle piece(shortest)) / slots
    computed = shared(even) + alone(piece(longest) - even)
    total    = max(computed, read) + min(computed, read) / 32 + merge

    K and V are read meanwhile: of tiles that wait for them, the one that computes less is ahead.
    Where lengths differ, short pieces fill the slots that long ones leave: none are idle.
    """
    pieces = work.tiles * splits
    slots = slots_of(device, kernel)
    longest = kernel.tile_ns + -(-work.longest // splits) * kernel.step_ns
    shortest = kernel.tile_ns + -(-work.shortest // splits) * kernel.step_ns
    steps = work.tiles * (work.shortest + work.longest) // 2
    busy = pieces * kernel.tile_ns + steps * kernel.step_ns
    idle = 0 if work.is_mixed else -pieces % slots
    even = (busy + idle * shortest) // slots
    beside = min(-(-pieces // device.sm_count), kernel.ctas_per_sm)
    tail = _beside_ns(max(longest - even, 0), 1, kernel)
    computed = _beside_ns(even, beside, kernel) + tail
    read = work.read_bytes // READ_BYTES_PER_NS
    merge = _merge_ns(work, splits)
    if is_cluster(work.grid, device, kernel, splits):
        merge = CLUSTER_MERGE_NS
    return max(computed, read) + min(computed, read) // 32 + merge


def _beside_ns(full_ns: int, ctas: int, kernel: KernelLimits) -> int:
    """What takes full_ns on an SM that holds all the CTAs it can, on one that holds `ctas`: a
    quarter of a CTA's time is its own, the rest is shared (where two fit, one alone took 0.53 to
    0.70 of the time on an H100)."""
    shared = full_ns * 3 // 4
    return full_ns - shared + shared // kernel.ctas_per_sm * ctas


def _merge_ns(work: Work, splits: int) -> int:
    """Every split writes its part of a row, and the reduction reads it and writes the row."""
    if splits == 1:
        return 0
    moved = 2 * work.rows * work.row_bytes * (splits + 1)
    return MERGE_NS + moved // MERGE_BYTES_PER_NS
