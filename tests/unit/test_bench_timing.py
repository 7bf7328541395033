# SPDX-License-Identifier: Apache-2.0
"""How `bench` measures, on a device that is a counter."""

from __future__ import annotations

import random

from attn_runtime.bench.timing import MOST_REPEATS, Call, Schedule, measure


class Counter:
    """Calls add to the clock; every fifth sample is disturbed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: list[tuple[Call, int]] = []

    def call_of(self, milliseconds: float) -> Call:
        def call() -> None:
            self.now += milliseconds

        return call

    def milliseconds(self, call: Call, repeats: int, host_s: float) -> float:
        self.samples.append((call, repeats))
        begin = self.now
        for _ in range(repeats):
            call()
        disturbance = 50.0 if len(self.samples) % 5 == 0 else 0.0
        return (self.now - begin) / repeats + disturbance

    def synchronize(self) -> None:
        pass


def times_of(schedule: Schedule, **milliseconds: float) -> tuple[dict[str, float], Counter]:
    device = Counter()
    calls = {name: device.call_of(ms) for name, ms in milliseconds.items()}
    return measure(calls, device, schedule, random.Random(1)), device


def test_a_disturbed_round_does_not_move_the_median() -> None:
    times, _ = times_of(Schedule(rounds=9), ours=1.0, other=2.5)
    assert {name: round(ms, 6) for name, ms in times.items()} == {"ours": 1.0, "other": 2.5}


def test_the_rounds_are_shuffled_and_every_contender_has_as_many() -> None:
    schedule = Schedule(rounds=12, warm_ms=0.0)
    _, device = times_of(schedule, ours=1.0, other=1.0, third=1.0)
    order = [call for call, _ in device.samples[3:]]
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 12
    assert all(len(set(one)) == 3 for one in rounds)
    assert len(set(rounds)) > 1


def test_a_round_takes_its_time_whatever_a_call_takes() -> None:
    schedule = Schedule(rounds=1, round_ms=10.0, warm_ms=0.0)
    for milliseconds, repeats in ((0.5, 20), (4.0, 2), (100.0, 1), (0.0001, MOST_REPEATS)):
        _, device = times_of(schedule, ours=milliseconds)
        assert device.samples[-1][1] == repeats


def test_each_contender_is_warmed_up_for_as_long() -> None:
    _, device = times_of(Schedule(rounds=1, round_ms=1.0, warm_ms=90.0), ours=1.0, other=3.0)
    work = dict.fromkeys((call for call, _ in device.samples), 0)
    for call, repeats in device.samples[2:-2]:
        work[call] += repeats
    assert sorted(work.values()) == [30, 90]


def test_a_cool_card_gets_pauses_and_no_warming_up() -> None:
    schedule = Schedule.idle(3)
    assert schedule.pause_s > 0 and schedule.warm_ms == 0
    assert schedule.round_ms < Schedule().round_ms
