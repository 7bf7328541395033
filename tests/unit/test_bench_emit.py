# SPDX-License-Identifier: Apache-2.0
"""Emit is fast enough to be run in every build."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import bench_emit


def best_of(runs: int, limit: float, measure: Callable[[], float]) -> float:
    """The best of up to `runs` runs: other work on the machine only ever adds time."""
    seconds = float("inf")
    for _ in range(runs):
        seconds = min(seconds, measure())
        if seconds <= limit:
            break
    return seconds


def test_a_whole_emit_takes_at_most_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    limit = bench_emit.EMIT_LIMIT_SECONDS
    seconds = best_of(5, limit, bench_emit.emit_seconds)
    with capsys.disabled():
        print(f"\nemit, whole process: {seconds:.2f} s")
    assert seconds <= limit


def test_ten_thousand_configurations_take_at_most_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(set(bench_emit.synthetic_configs())) == bench_emit.SYNTHETIC_COUNT == 10_000
    limit = bench_emit.SYNTHETIC_LIMIT_SECONDS
    seconds = best_of(2, limit, bench_emit.synthetic_seconds)
    with capsys.disabled():
        print(f"\nrendering and comparing 10,000 configurations: {seconds:.2f} s")
    assert seconds <= limit
