# SPDX-License-Identifier: Apache-2.0
"""What holds of every decode plan, and of how a column is cut; the C++ side gives the same."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_runtime.decode_plan import plan_decode, rank_decode, row_tiles
from attn_runtime.decode_ranges import RangeCut, cut_column, range_of, units_of_range
from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, PlanError, Problem, RangePlan
from attn_runtime.problem import SplitKind, SplitPolicy, ceil_div

DEVICE = DeviceLimits(sm_count=132)
KERNEL = KernelLimits(cta_q=8, cta_s=64, ctas_per_sm=2, threads=128, shared_bytes=101120)
CLUSTERED = replace(KERNEL, cluster_ctas=8)
PROBLEM = Problem(
    token_num=64,
    batch_size=64,
    max_q_len=1,
    max_k_len=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim_v=128,
)
ONE_TOKEN = replace(PROBLEM, token_num=1, batch_size=1, max_k_len=1024)

property_test = settings(max_examples=200, deadline=None)
columns = st.one_of(
    st.lists(st.integers(0, 300), max_size=40),
    st.builds(lambda count, units: [units] * count, st.integers(1, 300), st.integers(1, 300)),
)
plans = st.builds(
    RangePlan, ctas=st.integers(1, 2000), aligned_units=st.sampled_from([0, 1, 64, 128])
)


def bounds(cut: RangeCut) -> tuple[np.ndarray, np.ndarray]:
    """Units [begin, end) of every range."""
    none = np.zeros(0, np.int64)
    return units_of_range(cut, np.arange(cut.ranges)) if cut.ranges else (none, none)


@property_test
@given(columns, plans, st.integers(1, 600))
def test_ranges_cover_every_unit_once_and_none_is_empty(
    tiles: list[int], plan: RangePlan, most: int
) -> None:
    cut = cut_column(tiles, plan, most)
    begin, end = bounds(cut)
    assert cut.ranges <= most
    assert list(begin) == [0, *end[:-1]][: cut.ranges]
    assert (end > begin).all()
    assert (end[-1] if cut.ranges else 0) == sum(tiles)


@property_test
@given(columns, plans, st.integers(1, 600))
def test_range_of_a_unit_is_the_range_that_holds_it(
    tiles: list[int], plan: RangePlan, most: int
) -> None:
    cut = cut_column(tiles, plan, most)
    if cut.ranges:
        begin, end = bounds(cut)
        owners = np.repeat(np.arange(cut.ranges), end - begin)
        assert (range_of(cut, np.arange(sum(tiles))) == owners).all()


@property_test
@given(columns, plans, st.integers(1, 600))
def test_the_longest_range_is_at_most_ten_ninths_of_the_longest_of_equal_ones(
    tiles: list[int], plan: RangePlan, most: int
) -> None:
    cut = cut_column(tiles, plan, most)
    if cut.ranges:
        begin, end = bounds(cut)
        equal = ceil_div(sum(tiles), min(most, sum(tiles)))
        assert 9 * (end - begin).max() <= 10 * equal


def test_short_tiles_of_one_length_are_cut_at_their_ends() -> None:
    plan = RangePlan(ctas=264, aligned_units=64)
    cut = cut_column([16] * 32, plan, 33)
    assert set(bounds(cut)[0] % 16) == {0}
    assert set(bounds(cut_column([256] * 32, plan, 33))[0] % 256) != {0}


def test_tiles_of_few_units_are_cut_at_their_ends_where_no_range_gets_longer() -> None:
    cut = cut_column([11] * 3, RangePlan(ctas=128, aligned_units=128), 16)
    begin, end = bounds(cut)
    assert (cut.ranges, set(end - begin)) == (15, {2, 3})
    assert {0, 11, 22} <= set(begin)


def test_the_workspace_of_the_heuristic_depends_on_neither_batch_nor_lengths() -> None:
    first = plan_decode(PROBLEM, DEVICE, KERNEL, SplitPolicy.heuristic())
    longer = replace(PROBLEM, batch_size=500, token_num=500, max_k_len=1 << 20)
    second = plan_decode(longer, DEVICE, KERNEL, SplitPolicy.heuristic())
    assert first == second
    assert first.workspace_bytes == 2 * 264 * 4 * (128 + 2) * 4
    assert first.counter_cnt == 264 * 4
    assert first.reduce_grid_x == 0


def test_few_sequences_take_a_cta_of_an_sm_up_to_as_many_columns_as_sms() -> None:
    """4 KV heads of 33 sequences are 132 columns on 132 SMs."""

    def ctas_of(batch_size: int) -> int:
        problem = replace(PROBLEM, batch_size=batch_size, token_num=batch_size, num_kv_heads=4)
        return plan_decode(problem, DEVICE, KERNEL, SplitPolicy.heuristic()).ranges.ctas

    assert ctas_of(33) == 132
    assert ctas_of(34) == 264


@pytest.mark.parametrize("cap", [0, 2, 20, 500])
def test_few_and_short_sequences_plan_the_memory_of_many_and_long_ones(cap: int) -> None:
    found = set()
    for batch, keys in ((1, 130), (1, 4096), (7, 300), (500, 1 << 20)):
        problem = replace(PROBLEM, batch_size=batch, token_num=batch, max_k_len=keys)
        plan = plan_decode(problem, DEVICE, KERNEL, SplitPolicy.heuristic(max_split_k=cap))
        found.add((plan.workspace_bytes, plan.partial_ML_offset, plan.counter_cnt))
    assert len(found) == 1


@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 12, 32])
@pytest.mark.parametrize("rows", [8, 16, 32])
def test_row_tiles_hold_every_head_of_every_token(group: int, rows: int) -> None:
    for tokens in (1, 2, 5, 8):
        problem = replace(PROBLEM, num_heads=8 * group, token_num=64 * tokens, max_q_len=tokens)
        tiles = row_tiles(problem, rows)
        assert tiles.heads * tiles.tokens <= rows
        assert tiles.heads * tiles.head_tiles >= group
        assert tiles.tokens * tiles.query_tiles >= tokens
        assert tiles.tokens == 1 or tiles.head_tiles == 1


def test_bounds_change_no_row_tile_of_a_sequence() -> None:
    """Sequences of up to `tokens` are one tile under every bound that holds them."""
    for bound in range(1, 9):
        tiles = row_tiles(replace(PROBLEM, max_q_len=bound, num_heads=8), 8)
        whole = row_tiles(replace(PROBLEM, max_q_len=8, num_heads=8), 8)
        assert tiles.tokens == min(bound, whole.tokens)


def test_policy_fixed_size_takes_one_tile_whatever_the_bounds() -> None:
    policy = SplitPolicy.fixed_size(512)
    kernels = [replace(KERNEL, cta_q=rows) for rows in (8, 16, 32)]
    for tokens, batch in ((1, 1), (8, 1), (8, 300)):
        problem = replace(PROBLEM, batch_size=batch, token_num=batch * tokens, max_q_len=tokens)
        ranks = [rank_decode(problem, DEVICE, kernel, policy) for kernel in kernels]
        assert ranks.index(min(ranks)) == 0


@pytest.mark.parametrize(("rows", "most"), [(8, 16), (16, 1), (32, 1)])
def test_few_sequences_take_one_cta_of_the_two_that_fit_an_sm(rows: int, most: int) -> None:
    kernel = replace(KERNEL, cta_q=rows)
    assert kernel.ctas_per_sm == 2
    for batch, rounds in ((1, 1), (most, 1), (most + 1, 2), (64, 2)):
        problem = replace(PROBLEM, batch_size=batch, token_num=batch)
        plan = plan_decode(problem, DEVICE, kernel, SplitPolicy.heuristic())
        columns = problem.num_kv_heads
        assert plan.grid_x == rounds * DEVICE.sm_count // columns * columns


@pytest.mark.parametrize("policy", [SplitPolicy.heuristic(), SplitPolicy.fixed_size(512)])
@pytest.mark.parametrize("batch", [1, 300])
def test_four_warps_of_one_cta_go_before_two_of_each_of_two(
    policy: SplitPolicy, batch: int
) -> None:
    two = replace(KERNEL, cta_s=32, threads=64)
    four = replace(KERNEL, ctas_per_sm=1, shared_bytes=200000)
    problem = replace(PROBLEM, batch_size=batch, token_num=batch, head_dim_v=256)
    ranks = [rank_decode(problem, DEVICE, kernel, policy) for kernel in (two, four)]
    assert ranks.index(min(ranks)) == 1
    narrow = replace(DEVICE, shared_per_cta=101376)
    ranks = [rank_decode(problem, narrow, kernel, policy) for kernel in (two, four)]
    assert ranks.index(min(ranks)) == 0


@pytest.mark.parametrize(
    ("tokens", "batch", "keys", "ctas"),
    [
        (256, 64, 2048, 264),  # 512 splits of 4 stages a column: 16 to a CTA, of which 33 a column
        (512, 32, 4096, 264),
        (4096, 64, 16384, 2048),  # whole rounds of long splits, one to a CTA
        (512, 1024, 16384, 16 * 264),  # as many rounds as there may be
    ],
)
def test_short_splits_are_shared_out_over_fewer_rounds(
    tokens: int, batch: int, keys: int, ctas: int
) -> None:
    problem = replace(PROBLEM, batch_size=batch, token_num=batch, max_k_len=keys)
    plan = plan_decode(problem, DEVICE, KERNEL, SplitPolicy.fixed_size(tokens))
    assert plan.grid_x == ctas


# --- the C++ side ---------------------------------------------------------------------------------

PLAN_FIELDS = [field.name for field in fields(Plan) if field.name != "ranges"]
RANGE_FIELDS = [field.name for field in fields(RangePlan)]
MAIN = """
#include <iostream>

#include "attn/decode_plan.h"
#include "attn/decode_ranges.cuh"

int main() {
  attn::Problem p;
  attn::DeviceLimits d;
  attn::KernelLimits k;
  attn::SplitPolicy s;
  int sharding, form, kind;
  while (std::cin >> p.token_num >> p.batch_size >> p.max_q_len >> p.max_k_len >> p.num_heads) {
    std::cin >> p.num_kv_heads >> p.head_dim_v >> p.window_size >> p.causal;
    std::cin >> p.cp_rank >> p.cp_size >> sharding >> p.cp_chunk >> form >> p.key_bytes;
    std::cin >> d.sm_count >> d.max_grid_x >> d.shared_per_cta;
    READ_KERNEL
    std::cin >> kind >> s.value >> s.max_split_k;
    p.cp_sharding = static_cast<attn::KeySharding>(sharding);
    p.cp_form = static_cast<attn::CpForm>(form);
    s.kind = static_cast<attn::SplitKind>(kind);
    attn::ColumnTotals totals;
    int most, unit;
    std::cin >> totals.units >> totals.tiles >> totals.most >> totals.fewest >> most >> unit;
    try {
      std::cout << attn::rank_decode(p, d, k, s);
      const attn::Plan plan = attn::plan_decode(p, d, k, s);
      PRINT_FIELDS
      const attn::RangeCut cut = attn::cut_column(totals, plan.ranges, most);
      std::cout << ' ' << cut.ranges << ' ' << cut.period << ' ' << cut.parts;
      if (cut.ranges > 0) {
        std::cout << ' ' << attn::range_of(cut, unit % totals.units);
        const attn::UnitRange range = attn::units_of_range(cut, unit % cut.ranges);
        std::cout << ' ' << range.begin << ' ' << range.end;
      }
    } catch (const attn::Error& error) {
      std::cout << " error " << error.field() << ' ' << error.what();
    }
    std::cout << '\\n';
  }
}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the planner, and a column of tiles to cut with its plan."""

    problem: Problem
    device: DeviceLimits
    kernel: KernelLimits
    policy: SplitPolicy
    tiles: tuple[int, ...]
    most: int
    unit: int

    def to_line(self) -> str:
        """The case as the C++ side reads it."""
        parts = (self.problem, self.device, self.kernel, self.policy)
        values = [value for part in parts for value in astuple(part)]
        full = [units for units in self.tiles if units]
        values += [sum(full), len(full), max(full, default=0), min(full, default=2**31 - 1)]
        return " ".join(str(int(value)) for value in [*values, self.most, self.unit])

    def answer(self) -> str:
        """What the Python side says of it, as the C++ side prints it."""
        call = (self.problem, self.device, self.kernel, self.policy)
        told = ""
        try:
            told = f"{rank_decode(*call)}"
            plan = plan_decode(*call)
        except PlanError as error:
            return f"{told} error {error.field} {error}"
        cut = cut_column(self.tiles, plan.ranges, self.most)
        values = [getattr(plan, name) for name in PLAN_FIELDS]
        values += [getattr(plan.ranges, name) for name in RANGE_FIELDS]
        values += [cut.ranges, cut.period, cut.parts]
        if cut.ranges:
            values += [range_of(cut, self.unit % sum(self.tiles))]
            values += units_of_range(cut, self.unit % cut.ranges)
        return f"{told} " + " ".join(str(int(value)) for value in values)


def clusters(problem: Problem, kernel: KernelLimits = CLUSTERED) -> tuple[int, int]:
    """(CTAs of a cluster, ranges of a column)."""
    plan = plan_decode(problem, DEVICE, kernel, SplitPolicy.heuristic())
    assert plan.grid_x % plan.cluster == 0
    return plan.cluster, plan.ranges.ranges


@pytest.mark.parametrize(
    ("batch", "keys", "cluster", "ranges"),
    [
        (1, 64, 1, 1),
        (1, 129, 2, 2),
        (1, 1024, 8, 8),
        (1, 3072, 8, 8),
        (1, 4096, 1, 16),
        (2, 1024, 4, 8),
        (2, 2048, 1, 16),
        (3, 1024, 4, 12),
        (4, 1024, 4, 16),
        (4, 4096, 1, 16),
        (7, 1024, 2, 14),
        (7, 4096, 1, 16),
        (8, 1024, 2, 16),
        (8, 16384, 2, 16),
        (16, 1024, 1, 16),
        (17, 1024, 1, 33),
    ],
)
def test_few_ranges_of_each_sequence_come_in_clusters(
    batch: int, keys: int, cluster: int, ranges: int
) -> None:
    problem = replace(ONE_TOKEN, batch_size=batch, token_num=batch, max_k_len=keys)
    assert clusters(problem) == (cluster, ranges)


@pytest.mark.parametrize(
    "other",
    [{"window_size": 100}, {"cp_size": 2}, {"max_q_len": 2, "token_num": 2}],
    ids=["window", "ranks", "two tokens"],
)
def test_only_plain_calls_come_in_clusters(other: dict[str, int]) -> None:
    assert clusters(ONE_TOKEN)[0] == 8
    assert clusters(replace(ONE_TOKEN, **other))[0] == 1
    assert clusters(ONE_TOKEN, KERNEL)[0] == 1


def random_cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Everyday problems, and some whose numbers reach the limits of 32 bits."""
    for index in range(count):
        wild = index % 5 == 0
        kv_heads = rng.choice([1, 2, 8, 40, 2000 if wild else 16])
        batch = rng.choice([0, 1, 2, 7, 64, 3000, 2**31 - 1 if wild else 128])
        problem = Problem(
            token_num=rng.choice([0, batch, min(3 * batch, 2**31 - 1), 8]),
            batch_size=batch,
            max_q_len=rng.choice([0, 1, 4, 8, 2**31 - 1 if wild else 5]),
            max_k_len=rng.choice([0, 1, 1000, 131072, 2**31 - 1 if wild else 63]),
            num_heads=kv_heads * rng.choice([1, 4, 5, 7, 8, 32, 100]),
            num_kv_heads=kv_heads,
            head_dim_v=rng.choice([16, 64, 128, 256]),
            window_size=rng.choice([0, 0, 100]),
            cp_rank=0,
            cp_size=rng.choice([1, 1, 2]),
        )
        kind = SplitKind(index % 4)
        policy = SplitPolicy(
            kind, rng.choice([1, 3, 100, 4096]), rng.choice([0, 0, 1, 2, 50, 2**31 - 1])
        )
        kernel = KernelLimits(
            cta_q=rng.choice([8, 16, 32]),
            cta_s=rng.choice([32, 64]),
            ctas_per_sm=rng.choice([1, 2, 3]),
            threads=rng.choice([64, 128]),
            shared_bytes=rng.choice([101120, 199424]),
            cluster_ctas=rng.choice([1, 8, 8]),
        )
        device = DeviceLimits(rng.choice([1, 84, 108, 132]), shared_per_cta=101376)
        length = rng.choice([0, 1, 16, 100])
        tiles = [length] * rng.choice([1, 32, 33]) if rng.random() < 0.6 else [3, 0, 70, length]
        yield Case(
            problem, device, kernel, policy, tuple(tiles), rng.randrange(1, 300), rng.randrange(999)
        )


def test_cpp_decode_planner_gives_the_same_integers_and_errors(
    compile_main: Callable[[str, str], Path],
) -> None:
    printed = [f"plan.{name}" for name in PLAN_FIELDS]
    printed += [f"plan.ranges.{name}" for name in RANGE_FIELDS]
    limits = "".join(f" >> k.{field.name}" for field in fields(KernelLimits))
    source = MAIN.replace(
        "PRINT_FIELDS", "".join(f"std::cout << ' ' << {name};\n" for name in printed)
    ).replace("READ_KERNEL", f"std::cin{limits};")
    program = compile_main("decode_plans", source)
    cases = list(random_cases(random.Random(1), 4000))
    text = "\n".join(case.to_line() for case in cases)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    answers = done.stdout.splitlines()
    expected = [case.answer() for case in cases]
    different = [
        f"{case}\n  python {ours}\n  c++    {theirs}"
        for case, ours, theirs in zip(cases, expected, answers, strict=True)
        if ours != theirs
    ]
    assert not different, f"{len(different)} of {len(cases)} differ, first:\n{different[0]}"
    refused = sum("error" in answer for answer in expected)
    assert 0 < refused < len(cases) / 2, "cases must cover plans and refusals"
