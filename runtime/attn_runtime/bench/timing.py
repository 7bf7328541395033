# SPDX-License-Identifier: Apache-2.0
"""Times that can be compared: shuffled rounds in one process, medians, a settled power state.

A card that rests for a while runs faster at first than one that works: by up to 10 %, until its
power limit takes hold. So contenders are warmed up together, and their rounds follow each other
without a pause; each sees the clocks that the others leave behind. `pause_s` asks for the
opposite, a card that has cooled down before each sample.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final, Protocol

Call = Callable[[], object]

MOST_REPEATS: Final = 200
"""Launches that are enqueued behind a waiting device: the driver's queue holds about 1,000."""


class Sampler(Protocol):
    """How long calls take on the device."""

    def milliseconds(self, call: Call, repeats: int, host_s: float) -> float:
        """Of one call of `repeats`; the host needs about `host_s` to enqueue one."""

    def synchronize(self) -> None:
        """Wait until the device is idle."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is measured. Milliseconds of device time."""

    rounds: int = 7
    round_ms: float = 12.0
    warm_ms: float = 150.0
    pause_s: float = 0.0

    @classmethod
    def idle(cls, rounds: int) -> Schedule:
        """Short bursts of a cool card."""
        return cls(rounds=rounds, round_ms=2.0, warm_ms=0.0, pause_s=0.3)


@dataclass(frozen=True, slots=True)
class _Pace:
    """What a first look at a call gives."""

    host_s: float
    milliseconds: float

    def repeats(self, budget_ms: float) -> int:
        return max(1, min(MOST_REPEATS, round(budget_ms / max(self.milliseconds, 1e-3))))


def measure(
    calls: Mapping[str, Call], sampler: Sampler, schedule: Schedule, rng: random.Random
) -> dict[str, float]:
    """Milliseconds of each call: the median over the rounds."""
    paces = {name: _first_look(call, sampler) for name, call in calls.items()}
    _warm_up(calls, paces, sampler, schedule.warm_ms)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(schedule.rounds):
        for name in rng.sample(list(calls), len(calls)):
            if schedule.pause_s:
                time.sleep(schedule.pause_s)
            pace = paces[name]
            repeats = pace.repeats(schedule.round_ms)
            samples[name].append(sampler.milliseconds(calls[name], repeats, pace.host_s))
    return {name: median(times) for name, times in samples.items()}


def _first_look(call: Call, sampler: Sampler) -> _Pace:
    """The first call may load code or choose an algorithm; the next ones are looked at."""
    call()
    sampler.synchronize()
    begin = time.perf_counter()
    for _ in range(3):
        call()
    host_s = (time.perf_counter() - begin) / 3
    return _Pace(host_s, sampler.milliseconds(call, 3, host_s))


def _warm_up(
    calls: Mapping[str, Call], paces: Mapping[str, _Pace], sampler: Sampler, budget_ms: float
) -> None:
    """`budget_ms` of each call, in turns."""
    turns = 3 if budget_ms else 0
    for _ in range(turns):
        for name, call in calls.items():
            pace, left_ms = paces[name], budget_ms / turns
            while left_ms > 0:
                repeats = pace.repeats(left_ms)
                sampler.milliseconds(call, repeats, pace.host_s)
                left_ms -= max(repeats * pace.milliseconds, 0.1)
