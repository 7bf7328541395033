# SPDX-License-Identifier: Apache-2.0
"""Which rank has which keys, and what a query sees of them, against counting one by one."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from attn_runtime.plan import CpForm, Problem
from attn_runtime.problem import KeySharding
from attn_runtime.shards import shards_of
from attn_runtime.tiles import local_keys
from reference import visible

SIZES = range(1, 65)
SHARDINGS = [
    (KeySharding.INTERLEAVED, 1),
    (KeySharding.INTERLEAVED, 16),
    (KeySharding.INTERLEAVED, 7),
    (KeySharding.CONTIGUOUS, 1),
    (KeySharding.ZIGZAG, 1),
]
LENGTHS = (0, 1, 2, 63, 64, 65, 127, 128, 129, 500, 1000)
CALLS = 4000

MAIN = """
#include <iostream>

#include "attn/key_range.cuh"

// Per line: sharding size rank chunk length q_len offset(-1: none) window causal query
int main() {
  for (int sharding; std::cin >> sharding;) {
    int size, rank, chunk, length, q_len, offset, window, causal, query;
    std::cin >> size >> rank >> chunk >> length >> q_len >> offset >> window >> causal >> query;
    const int cu_k_len[2] = {7, 7 + length};
    attn::AttentionParams<char> params;
    params.cu_k_len = cu_k_len;
    params.offset_q = offset < 0 ? nullptr : &offset;
    params.window_size = window;
    params.cp_sharding = static_cast<attn::KeySharding>(sharding);
    params.cp_size = size;
    params.cp_rank = rank;
    params.cp_chunk = chunk;
    const attn::VisibleKeys keys = attn::visible_keys(params, 0, q_len, causal != 0);
    std::cout << keys.k_len << ' ' << keys.first(query) << ' ' << keys.end(query) << ' '
              << (query < length && keys.shards.holds(query)) << '\\n';
  }
}
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One query of a sequence, and the rank that is asked."""

    sharding: KeySharding
    size: int
    rank: int
    chunk: int
    length: int
    q_len: int
    offset: int
    window: int
    causal: bool
    query: int

    def to_line(self) -> str:
        """The call as the C++ side reads it."""
        values = (self.sharding, self.size, self.rank, self.chunk, self.length, self.q_len)
        values += (self.offset, self.window, self.causal, self.query)
        return " ".join(str(int(value)) for value in values)

    def seen(self) -> list[int]:
        """Indices of this rank's keys that the query sees, from the definition."""
        end = self.length if self.offset < 0 else self.offset + self.q_len
        # The oracle aligns bottom-right: with as many queries as reach the query's position.
        position = end - self.q_len + self.query
        keys = np.arange(self.length)
        mask = np.ones(self.length, bool)
        if self.causal:
            mask &= keys <= position
        if self.window:
            mask &= keys > position - self.window
            if not self.causal:
                mask &= keys < position + self.window
        shards = shards_of(self.sharding, self.size, self.rank, self.chunk, self.length)
        own = shards.positions(self.length)
        return [int(j) for j in np.flatnonzero(mask[own])]


@pytest.mark.parametrize(("sharding", "chunk"), SHARDINGS)
def test_ranks_cover_every_key_exactly_once(sharding, chunk):
    for size in SIZES:
        for length in LENGTHS:
            shards = [shards_of(sharding, size, rank, chunk, length) for rank in range(size)]
            positions = [one.positions(length) for one in shards]
            assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(length))
            assert all(np.all(np.diff(own) > 0) for own in positions), "in order"


@pytest.mark.parametrize(("sharding", "chunk"), SHARDINGS)
def test_keys_before_counts_the_positions_below(sharding, chunk):
    for size in SIZES:
        for length in (0, 1, 65, 300):
            for rank in {0, size // 2, size - 1}:
                shards = shards_of(sharding, size, rank, chunk, length)
                limits = np.arange(length + 1)
                counted = np.searchsorted(shards.positions(length), limits)
                assert np.array_equal(shards.keys_before(limits), counted)


def test_interleaved_keys_are_those_of_turbomind():
    for size in SIZES:
        for rank in range(size):
            own = shards_of(KeySharding.INTERLEAVED, size, rank, 1, 1000).positions(1000)
            assert np.all(own % size == rank)
            assert np.array_equal(own // size, np.arange(len(own)))


def test_zigzag_gives_every_rank_the_same_causal_work():
    for size in SIZES:
        length = 2 * size * 5
        work = [
            np.sum(length - shards_of(KeySharding.ZIGZAG, size, rank, 1, length).positions(length))
            for rank in range(size)
        ]
        assert len(set(work)) == 1


@pytest.mark.parametrize(("sharding", "chunk"), SHARDINGS)
def test_the_planner_bounds_the_keys_of_every_rank_and_length(sharding, chunk):
    for size in SIZES:
        for longest in LENGTHS:
            problem = Problem(
                *(1, 1, 1, longest, 1, 1, 64),
                cp_size=size,
                cp_sharding=sharding,
                cp_chunk=chunk,
                cp_form=CpForm.SCALED,
            )
            most = local_keys(problem)
            for length in {longest, max(longest - 1, 0), longest // 2}:
                for rank in range(size):
                    own = shards_of(sharding, size, rank, chunk, length).keys_before(length)
                    assert own <= most
            full = [
                int(shards_of(sharding, size, r, chunk, longest).keys_before(longest))
                for r in range(size)
            ]
            assert most <= max(full) + 1, "the bound is tight but for the last chunk"


def test_kernels_see_the_keys_that_the_definition_gives(compile_main):
    rng = random.Random(0)
    calls = [random_call(rng) for _ in range(CALLS)]
    program = compile_main("visible", MAIN)
    answers = run_lines(program, [call.to_line() for call in calls])
    for call, answer in zip(calls, answers, strict=True):
        k_len, first, end, holds = map(int, answer.split())
        shards = shards_of(call.sharding, call.size, call.rank, call.chunk, call.length)
        assert k_len == len(shards.positions(call.length)), call
        assert list(range(first, end)) == call.seen(), call
        assert holds == (call.query in shards.positions(call.length)), call
    assert sum(bool(call.seen()) for call in calls) > CALLS // 4, "many must see something"


def test_limits_of_kernels_do_not_overflow_at_the_end_of_32_bits(compile_main):
    last = 2**31 - 1
    program = compile_main("visible", MAIN)
    for size, rank in ((1, 0), (3, 2), (64, 63)):
        for sharding in KeySharding:
            call = Call(sharding, size, rank, 1, last, 1, -1, last, False, 0)
            k_len, first, end, _ = map(int, run_lines(program, [call.to_line()])[0].split())
            shards = shards_of(sharding, size, rank, 1, last)
            assert (k_len, first, end) == (int(shards.keys_before(last)), 0, k_len)


def test_the_definition_here_is_that_of_the_oracle():
    for causal in (False, True):
        for window in (0, 1, 3):
            mask = visible(4, 9, causal, window)
            for query in range(4):
                call = Call(KeySharding.INTERLEAVED, 1, 0, 1, 9, 4, -1, window, causal, query)
                assert call.seen() == list(np.flatnonzero(mask[query]))


def run_lines(program: Path, lines: list[str]) -> list[str]:
    """A line of answer for each line of input."""
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def random_call(rng: random.Random) -> Call:
    size = rng.choice([1, 2, 3, 4, 5, 8, 17, 63, 64])
    sharding, chunk = rng.choice(SHARDINGS)
    length = rng.choice([0, 1, rng.randrange(300), rng.randrange(40)])
    q_len = rng.choice([1, 2, rng.randrange(1, 350)])
    return Call(
        sharding=sharding,
        size=size,
        rank=rng.randrange(size),
        chunk=chunk,
        length=length,
        q_len=q_len,
        offset=rng.choice([-1, -1, rng.randrange(400)]),
        window=rng.choice([0, 0, 1, 5, rng.randrange(1, 400), 2**31 - 1]),
        causal=rng.random() < 0.6,
        query=rng.randrange(q_len),
    )
