# SPDX-License-Identifier: Apache-2.0
"""attn/plan.h, choose.h and split.cuh, compiled for the host, give the integers of attn_runtime."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pytest

from attn_runtime.choose import rank
from attn_runtime.plan import (
    CpForm,
    DeviceLimits,
    KernelLimits,
    KeySharding,
    Plan,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    plan,
)
from attn_runtime.splits import split_count, split_range

PROBLEMS_PER_POLICY = 2000
RANGES_PER_PROBLEM = 3
PLAN_FIELDS = [field.name for field in fields(Plan) if field.name != "ranges"]

MAIN = """
#include <iostream>

#include "attn/choose.h"
#include "attn/plan.h"
#include "attn/split.cuh"

namespace {

attn::Plan read_rank_and_plan(std::istream& in) {
  attn::Problem p;
  attn::DeviceLimits d;
  attn::KernelLimits k;
  attn::SplitPolicy s;
  int kind;
  in >> p.token_num >> p.batch_size >> p.max_q_len >> p.max_k_len >> p.num_heads >> p.num_kv_heads;
  int sharding, form;
  in >> p.head_dim_v >> p.window_size >> p.causal >> p.cp_rank >> p.cp_size;
  in >> sharding >> p.cp_chunk >> form >> p.key_bytes;
  p.cp_sharding = static_cast<attn::KeySharding>(sharding);
  p.cp_form = static_cast<attn::CpForm>(form);
  in >> d.sm_count >> d.max_grid_x >> d.shared_per_cta;
  in >> k.cta_q >> k.cta_s >> k.ctas_per_sm >> k.threads >> k.shared_bytes;
  in >> k.tile_ns >> k.step_ns;
  in >> k.packed_heads >> k.tile_counters >> k.merged_splits;
  in >> k.cluster_ctas;
  in >> kind >> s.value >> s.max_split_k;
  s.kind = static_cast<attn::SplitKind>(kind);
  std::cout << attn::rank(p, d, k, s) << ' ';
  return attn::plan(p, d, k, s);
}

void print(const attn::Plan& p) {
  std::cout << "plan";
PRINT_FIELDS
}

void print_range(int begin, int end, int split, const attn::TilePlan& plan) {
  const attn::TileRange range = attn::split_range(begin, end, plan, split);
  std::cout << ' ' << attn::split_count(begin, end, plan);
  std::cout << ' ' << range.begin << ' ' << range.end;
}

}  // namespace

int main() {
  for (int ranges; std::cin >> ranges;) {
    attn::TilePlan tiles;
    tiles.cta_q = 0;
    try {
      const attn::Plan plan = read_rank_and_plan(std::cin);
      tiles = attn::tile_plan(plan);
      print(plan);
    } catch (const attn::Error& error) {
      std::cout << "error " << error.field() << ' ' << error.what();
    }
    for (int begin, end, split; ranges > 0; --ranges) {
      std::cin >> begin >> end >> split;
      if (tiles.cta_q > 0) {
        print_range(begin, end, split, tiles);
      }
    }
    std::cout << '\\n';
  }
}
"""

POLICY_MAIN = """
#include <iostream>

#include "attn/plan.h"

int main() {
  for (int most, count, size; std::cin >> most >> count >> size;) {
    try {
      const attn::SplitPolicy policy = attn::split_policy(most, count, size);
      std::cout << static_cast<int>(policy.kind) << ' ' << policy.value;
      std::cout << ' ' << policy.max_split_k;
    } catch (const attn::Error& error) {
      std::cout << error.field();
    }
    std::cout << '\\n';
  }
}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the planner, and the (begin, end, split) to cut with its plan."""

    problem: Problem
    device: DeviceLimits
    kernel: KernelLimits
    policy: SplitPolicy
    ranges: tuple[tuple[int, int, int], ...]

    def to_line(self) -> str:
        """The case as the C++ side reads it."""
        parts = (self.problem, self.device, self.kernel, self.policy)
        values = [len(self.ranges), *(value for part in parts for value in astuple(part))]
        values += [value for triple in self.ranges for value in triple]
        return " ".join(str(int(value)) for value in values)

    def answer(self) -> str:
        """What the Python side says of it, as the C++ side prints it: its rank, then its plan."""
        call = (self.problem, self.device, self.kernel, self.policy)
        told = ""
        try:
            told = f"{rank(*call)} "
            made = plan(*call)
        except PlanError as error:
            return f"{told}error {error.field} {error}"
        values = [getattr(made, name) for name in PLAN_FIELDS]
        for begin, end, split in self.ranges:
            first, last = split_range(begin, end, made, split)
            values += [split_count(begin, end, made), first, last]
        return f"{told}plan " + " ".join(str(int(value)) for value in values)


@pytest.fixture(scope="module")
def twin(compile_main: Callable[[str, str], Path]) -> Callable[[list[Case]], list[str]]:
    """Runs cases through the C++ planner; one line of answer each."""
    printed = "\n".join(f"  std::cout << ' ' << p.{name};" for name in PLAN_FIELDS)
    program = compile_main("plans", MAIN.replace("PRINT_FIELDS", printed))

    def run(cases: list[Case]) -> list[str]:
        text = "\n".join(case.to_line() for case in cases)
        done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("kind", SplitKind)
def test_cpp_planner_gives_the_same_integers_and_errors(twin, kind):
    cases = list(random_cases(random.Random(int(kind)), kind))
    answers = twin(cases)
    expected = [case.answer() for case in cases]
    different = [
        f"{case}\n  python {ours}\n  c++    {theirs}"
        for case, ours, theirs in zip(cases, expected, answers, strict=True)
        if ours != theirs
    ]
    assert not different, f"{len(different)} of {len(cases)} differ, first:\n{different[0]}"
    planned = sum(" plan " in answer for answer in expected)
    assert 0.5 * len(cases) < planned < len(cases), "cases must cover plans and refusals"


def test_params_ask_for_a_policy_by_their_split_fields(compile_main):
    asked = {
        (0, 0, 0): "0 0 0",
        (5, 0, 0): "0 0 5",
        (0, 8, 0): "1 8 0",
        (4, 8, 0): "1 8 4",
        (0, 0, 512): "2 512 0",
        (1, 0, 512): "2 512 1",
        (1, 0, 0): "3 0 1",
        (1, 8, 0): "3 0 1",
        (0, 8, 512): "split_size",
        (0, -1, 0): "split_cnt",
        (0, 0, -1): "split_size",
    }
    text = "\n".join(f"{a} {b} {c}" for a, b, c in asked)
    program = compile_main("policies", POLICY_MAIN)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    assert dict(zip(asked, done.stdout.splitlines(), strict=True)) == asked


def random_cases(rng: random.Random, kind: SplitKind) -> Iterator[Case]:
    """Everyday problems, and some whose numbers reach the limits of 32 bits."""
    for index in range(PROBLEMS_PER_POLICY):
        extreme = index % 4 == 0
        problem = random_problem(rng, extreme)
        tiles = rng.choice([4, 40, 3000, 2**31 - 1] if extreme else [4, 40, 3000])
        ranges = []
        for _ in range(RANGES_PER_PROBLEM):
            begin, end = rng.randrange(tiles), rng.randrange(tiles)
            ranges.append((begin, end, rng.choice([0, 1, rng.randrange(130)])))
        device = DeviceLimits(
            sm_count=rng.choice([1, 16, 108, 132, 2**31 - 1 if extreme else 84]),
            shared_per_cta=rng.choice([232448, 101376, 65536]),
        )
        kernel = KernelLimits(
            cta_q=rng.choice([1, 64, 128, 192, 2**31 - 1 if extreme else 16]),
            cta_s=rng.choice([16, 64, 80, 128, 2**31 - 1 if extreme else 32]),
            ctas_per_sm=rng.choice([1, 2, 3, 8, 2**31 - 1 if extreme else 4]),
            threads=128,
            shared_bytes=98304,
            tile_ns=rng.choice([0, 900, 2500, 2**16 - 1, 2**16 if extreme else 4000]),
            step_ns=rng.choice([0, 400, 1500, 2**16 - 1]),
            packed_heads=rng.choice([1, 1, 4, 16]),
            tile_counters=rng.choice([0, 1]),
            merged_splits=rng.choice([1, 4, 8]),
        )
        yield Case(problem, device, kernel, random_policy(rng, kind), tuple(ranges))


def random_problem(rng: random.Random, extreme: bool) -> Problem:
    batch = rng.choice([0, 1, 2, 7, 64, 1000, size(rng, 31) if extreme else 3])
    tokens = size(rng, 31 if extreme else 15)
    num_kv_heads = rng.choice([1, 2, 8, size(rng, 15) if extreme else 16])
    num_heads = num_kv_heads * rng.choice([1, 4, 5, 16])
    cp_size = rng.choice([1, 1, 1, 2, 3, 7, 64])
    if rng.random() < 0.01:
        num_kv_heads += 1
    return Problem(
        token_num=tokens,
        batch_size=batch,
        max_q_len=rng.choice([tokens, min(tokens, size(rng, 12)), size(rng, 31)]),
        max_k_len=size(rng, 31 if extreme else 18),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim_v=rng.choice([64, 128, 192, 2**31 - 1 if extreme else 256]),
        window_size=rng.choice([0, 0, 1, 63, 64, size(rng, 31 if extreme else 12)]),
        causal=rng.random() < 0.5,
        cp_rank=rng.randrange(cp_size) if rng.random() < 0.99 else cp_size,
        cp_size=cp_size,
        cp_sharding=rng.choice(list(KeySharding)),
        cp_chunk=rng.choice([1, 1, 16, 64, size(rng, 31)]),
        cp_form=rng.choice(list(CpForm)),
        key_bytes=rng.choice([0, 256, 512, 2**31 - 1 if extreme else 1024]),
    )


def random_policy(rng: random.Random, kind: SplitKind) -> SplitPolicy:
    cap = rng.choice([0, 0, 1, 5, 64, 2**31 - 1, -1 if rng.random() < 0.02 else 0])
    if kind is SplitKind.FIXED:
        return SplitPolicy(kind, rng.choice([0, 1, 2, 7, 64, 1000, 2**31 - 1, 3, 4, 5]), cap)
    if kind is SplitKind.FIXED_SIZE:
        return SplitPolicy(kind, rng.choice([0, 1, 64, 1000, 4096, 2**31 - 1, 3000]), cap)
    return SplitPolicy(kind, 0, cap)


def size(rng: random.Random, bits: int) -> int:
    """A length whose order of magnitude is uniform, 0 and 2^bits - 1 included."""
    return min(2**bits - 1, int(2 ** rng.uniform(0, bits)) - rng.randrange(2))
