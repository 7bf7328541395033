# SPDX-License-Identifier: Apache-2.0
"""Which decode calls a prefill kernel takes, and that it stays in the memory of decode; the C++
side gives the same."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from attn_runtime.choose import UNFIT
from attn_runtime.decode_plan import plan_decode
from attn_runtime.many_rows import (
    MOST_DECODE_ROWS,
    has_many_rows,
    plan_many_rows,
    rank_many_rows,
    room_for,
)
from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, Problem, RangePlan
from attn_runtime.problem import SplitPolicy

DEVICE = DeviceLimits(sm_count=132, shared_per_cta=232448)
DECODE = KernelLimits(cta_q=32, cta_s=64, ctas_per_sm=2, threads=128, shared_bytes=101120)
PREFILL = KernelLimits(
    cta_q=64,
    cta_s=128,
    ctas_per_sm=1,
    threads=256,
    shared_bytes=166912,
    packed_heads=64,
    tile_counters=1,
)
PROBLEM = Problem(
    token_num=64,
    batch_size=8,
    max_q_len=8,
    max_k_len=4096,
    num_heads=64,
    num_kv_heads=8,
    head_dim_v=128,
)


HEURISTIC = SplitPolicy.heuristic()


def taken(problem: Problem, policy: SplitPolicy = HEURISTIC) -> Plan:
    """The plan of the prefill kernel."""
    decode = plan_decode(problem, DEVICE, DECODE, policy)
    return plan_many_rows(problem, DEVICE, PREFILL, decode, room_for(problem, DEVICE, policy))


def batch_of(sequences: int, keys: int) -> Problem:
    return replace(PROBLEM, token_num=8 * sequences, batch_size=sequences, max_k_len=keys)


def assert_splits_have_room(problem: Problem, plan: Plan) -> None:
    parts = plan.split_cnt * problem.token_num * problem.num_heads if plan.split_cnt > 1 else 0
    assert parts * 4 * problem.head_dim_v <= plan.partial_O_bytes <= plan.partial_ML_offset
    assert plan.partial_ML_offset + parts * 8 <= plan.workspace_bytes


@pytest.mark.parametrize("sequences", [1, 2, 7, 20, 64, 500])
@pytest.mark.parametrize("keys", [200, 4096, 1 << 20])
def test_the_splits_of_any_batch_have_room_in_one_memory(sequences: int, keys: int) -> None:
    problem, usual = batch_of(sequences, keys), taken(PROBLEM)
    plan = taken(problem)
    assert plan.workspace_bytes == usual.workspace_bytes
    assert plan.partial_ML_offset == usual.partial_ML_offset
    assert plan.counter_cnt == usual.counter_cnt
    assert_splits_have_room(problem, plan)


@pytest.mark.parametrize("heads", [8, 40])
def test_the_memory_is_enough_for_the_decode_kernel_that_could_take_the_call(heads: int) -> None:
    problem = replace(PROBLEM, num_heads=8 * heads, num_kv_heads=heads)
    decode, plan = plan_decode(problem, DEVICE, DECODE, HEURISTIC), taken(problem)
    ML_bytes = decode.workspace_bytes - decode.partial_ML_offset
    assert plan.partial_O_bytes >= decode.partial_O_bytes
    assert plan.workspace_bytes - plan.partial_ML_offset >= ML_bytes
    assert plan.counter_cnt >= max(decode.counter_cnt, PREFILL.tile_counters)
    assert plan.ranges == decode.ranges


@pytest.mark.parametrize("most", [2, 3, 40])
def test_a_bound_of_splits_bounds_the_memory(most: int) -> None:
    problem, policy = batch_of(1, 1 << 20), SplitPolicy.heuristic(max_split_k=most)
    plan = taken(problem, policy)
    assert plan.split_cnt <= most
    assert_splits_have_room(problem, plan)
    rows = problem.token_num * problem.num_heads
    decode = plan_decode(problem, DEVICE, DECODE, policy)
    bound = most * rows * (problem.head_dim_v + 2) * 4 + 256
    assert plan.workspace_bytes <= max(bound, decode.workspace_bytes)


def test_few_sequences_are_split_until_they_fill_the_device() -> None:
    assert taken(batch_of(1, 65536)).grid_x > 0.75 * DEVICE.sm_count


@pytest.mark.parametrize("keys", [4096, 16384])
def test_where_half_of_the_ctas_read_as_fast_as_all_nothing_is_split(keys: int) -> None:
    kernel = replace(PREFILL, tile_ns=1692, step_ns=1071)
    known = replace(batch_of(8, keys), key_bytes=512)
    for problem, splits in ((known, 1), (replace(known, key_bytes=0), 2)):
        decode = plan_decode(problem, DEVICE, DECODE, HEURISTIC)
        room = room_for(problem, DEVICE, HEURISTIC)
        assert plan_many_rows(problem, DEVICE, kernel, decode, room).split_cnt == splits


@pytest.mark.parametrize("decode_rows", [8, 16, 32])
def test_rows_are_many_where_a_decode_tile_is_too_low_or_slower(decode_rows: int) -> None:
    decode = replace(DECODE, cta_q=decode_rows)
    for tokens in range(1, 9):
        problem = replace(PROBLEM, num_heads=8 * 4, token_num=8 * tokens, max_q_len=8)
        is_many = 4 * tokens > min(decode_rows, MOST_DECODE_ROWS)
        assert has_many_rows(problem, decode, HEURISTIC) is is_many
        over_codes = has_many_rows(problem, decode, HEURISTIC, over_codes=True)
        assert over_codes is (4 * tokens > decode_rows)


@pytest.mark.parametrize(
    "policy",
    [
        SplitPolicy.off(),
        SplitPolicy.heuristic(max_split_k=1),
        SplitPolicy.fixed(4),
        SplitPolicy.fixed_size(512),
    ],
)
def test_splits_that_are_asked_for_are_those_of_decode_kernels(policy: SplitPolicy) -> None:
    assert has_many_rows(PROBLEM, DECODE, HEURISTIC)
    assert not has_many_rows(PROBLEM, DECODE, policy)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"num_heads": 8 * 16, "token_num": 8 * 3}, True),
        ({"num_heads": 8 * 5}, True),  # padded to 8 heads
        ({"num_heads": 8 * 12, "token_num": 8 * 4, "max_q_len": 4}, True),
        ({"num_heads": 8 * 12}, False),  # 8 tokens of 16 heads are two tiles
        ({"num_heads": 8 * 24, "token_num": 8, "max_q_len": 1}, False),  # not padded beyond 16
        ({"num_heads": 8 * 64, "token_num": 8}, True),
        ({"num_heads": 8 * 128, "token_num": 8}, False),
        ({"cp_size": 2}, False),
    ],
)
def test_only_groups_that_share_a_tile_are_taken(change: dict[str, Any], fits: bool) -> None:
    rank = rank_many_rows(replace(PROBLEM, **change), DEVICE, PREFILL, HEURISTIC)
    assert (rank != UNFIT) is fits
    small = replace(DEVICE, shared_per_cta=101376)
    assert rank_many_rows(replace(PROBLEM, **change), small, PREFILL, HEURISTIC) == UNFIT


@pytest.mark.parametrize(("group", "rows"), [(5, 8), (8, 8), (12, 16), (64, 64)])
def test_a_tile_holds_a_whole_group(group: int, rows: int) -> None:
    tokens = PREFILL.cta_q // rows
    problem = replace(
        PROBLEM, num_heads=8 * group, token_num=PROBLEM.batch_size * tokens, max_q_len=tokens
    )
    plan = taken(problem)
    assert (plan.packed_heads, plan.cta_q, plan.q_tiles) == (rows, tokens, PROBLEM.batch_size)
    assert plan.grid_x == PROBLEM.batch_size * PROBLEM.num_kv_heads * plan.split_cnt


# --- the C++ side ---------------------------------------------------------------------------------

PLAN_FIELDS = [field.name for field in fields(Plan) if field.name != "ranges"]
PRINTED = [
    *(f"plan.{name}" for name in PLAN_FIELDS),
    *(f"plan.ranges.{field.name}" for field in fields(RangePlan)),
]
LIMITS = [field.name for field in fields(KernelLimits)]
MAIN = """
#include <iostream>

#include "attn/many_rows.h"

int main() {
  attn::Problem p;
  attn::DeviceLimits d;
  attn::KernelLimits decode;
  attn::KernelLimits k;
  int cap;
  while (std::cin >> p.token_num >> p.batch_size >> p.max_q_len >> p.max_k_len >> p.num_heads) {
    std::cin >> p.num_kv_heads >> p.head_dim_v >> p.window_size >> p.cp_size >> p.key_bytes;
    std::cin >> d.sm_count >> d.shared_per_cta READ_LIMITS >> cap;
    const attn::SplitPolicy policy{attn::SplitKind::kHeuristic, 0, cap};
    const attn::Plan own = attn::plan_decode(p, d, decode, policy);
    const std::int64_t room = attn::room_for(p, d, policy);
    const attn::SplitPolicy within = attn::split_policy(attn::splits_within(p, room), 0, 0);
    const attn::Plan plan = attn::with_memory(p, own, room, attn::plan(p, d, k, within));
    for (const bool over_codes : {false, true}) {
      std::cout << attn::has_many_rows(p, decode, policy, over_codes) << ' ';
    }
    std::cout << attn::rank_many_rows(p, d, k, policy)PRINT_FIELDS << '\\n';
  }
}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A decode call, the kernels that could take it, and its bound of splits."""

    problem: Problem
    device: DeviceLimits
    decode: KernelLimits
    prefill: KernelLimits
    cap: int

    def to_line(self) -> str:
        """The case as the C++ side reads it."""
        p, d = self.problem, self.device
        values = [p.token_num, p.batch_size, p.max_q_len, p.max_k_len, p.num_heads, p.num_kv_heads]
        values += [p.head_dim_v, p.window_size, p.cp_size, p.key_bytes]
        values += [d.sm_count, d.shared_per_cta]
        values += [*astuple(self.decode), *astuple(self.prefill), self.cap]
        return " ".join(str(int(value)) for value in values)

    def answer(self) -> str:
        """What the Python side says of it, as the C++ side prints it."""
        policy = SplitPolicy.heuristic(self.cap)
        own = plan_decode(self.problem, self.device, self.decode, policy)
        room = room_for(self.problem, self.device, policy)
        plan = plan_many_rows(self.problem, self.device, self.prefill, own, room)
        values: list[int] = [
            has_many_rows(self.problem, self.decode, policy, over_codes=over_codes)
            for over_codes in (False, True)
        ]
        values += [rank_many_rows(self.problem, self.device, self.prefill, policy)]
        values += [getattr(plan, name) for name in PLAN_FIELDS] + [*astuple(plan.ranges)]
        return " ".join(str(int(value)) for value in values)


def random_cases(rng: random.Random, count: int) -> Iterator[Case]:
    for _ in range(count):
        kv_heads, batch = rng.choice([1, 2, 8, 40]), rng.choice([1, 2, 7, 20, 64, 3000])
        tokens = rng.choice([1, 2, 5, 8, 20])
        problem = Problem(
            token_num=rng.randint(1, batch * tokens),
            batch_size=batch,
            max_q_len=tokens,
            max_k_len=rng.choice([0, 1, 63, 1000, 131072, 1 << 24]),
            num_heads=kv_heads * rng.choice([1, 4, 6, 8, 16, 32, 64, 100]),
            num_kv_heads=kv_heads,
            head_dim_v=rng.choice([64, 128, 256]),
            window_size=rng.choice([0, 0, 100]),
            cp_size=rng.choice([1, 1, 1, 2]),
            key_bytes=rng.choice([0, 256, 512]),
        )
        decode = replace(DECODE, cta_q=rng.choice([8, 32]), ctas_per_sm=rng.choice([1, 2]))
        prefill = replace(
            PREFILL, cta_q=rng.choice([64, 128, 256]), shared_bytes=rng.choice([91136, 166912])
        )
        device = replace(DEVICE, shared_per_cta=rng.choice([232448, 232448, 101376]))
        yield Case(problem, device, decode, prefill, rng.choice([0, 0, 2, 3, 40]))


def test_cpp_gives_the_same_integers(compile_main: Callable[[str, str], Path]) -> None:
    limits = "".join(f" >> {kernel}.{name}" for kernel in ("decode", "k") for name in LIMITS)
    printed = "".join(f" << ' ' << {name}" for name in PRINTED)
    source = MAIN.replace("READ_LIMITS", limits).replace("PRINT_FIELDS", printed)
    program = compile_main("many_rows", source)
    cases = list(random_cases(random.Random(1), 3000))
    text = "\n".join(case.to_line() for case in cases)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    expected = [case.answer() for case in cases]
    for case, ours, theirs in zip(cases, expected, done.stdout.splitlines(), strict=True):
        assert ours == theirs, case
    taken = sum(has_many_rows(case.problem, case.decode, HEURISTIC) for case in cases)
    assert 0.2 < taken / len(cases) < 0.9
