# SPDX-License-Identifier: Apache-2.0
"""The heuristic, held to a workspace: it splits less where there is less, and never takes more."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_runtime.decode_plan import plan_decode
from attn_runtime.plan import (
    CpForm,
    DeviceLimits,
    KernelLimits,
    Plan,
    Problem,
    SplitPolicy,
    plan,
)
from attn_runtime.plan_within import Planner, plan_within, splits_that_fit

DEVICE = DeviceLimits(sm_count=132)
PREFILL = KernelLimits(cta_q=64, cta_s=64, ctas_per_sm=2, threads=128, shared_bytes=49152)
DECODE = KernelLimits(cta_q=8, cta_s=64, ctas_per_sm=2, threads=128, shared_bytes=101120)
HEURISTIC = SplitPolicy.heuristic()
MODES = pytest.mark.parametrize(
    ("make", "kernel"), [(plan, PREFILL), (plan_decode, DECODE)], ids=["prefill", "decode"]
)


def problem_of(
    q_len: int, *, batch_size: int = 2, head_dim_v: int = 128, ranks: int = 1
) -> Problem:
    return Problem(
        token_num=batch_size * q_len,
        batch_size=batch_size,
        max_q_len=q_len,
        max_k_len=1 << 16,
        num_heads=8,
        num_kv_heads=2,
        head_dim_v=head_dim_v,
        cp_size=ranks,
        cp_form=CpForm.COMPLETE,
    )


def planned(make: Planner, kernel: KernelLimits, problem: Problem, have: int | None) -> Plan:
    return plan_within(make, problem, DEVICE, kernel, HEURISTIC, have)


problems = st.builds(
    problem_of,
    st.integers(1, 100),
    batch_size=st.integers(1, 40),
    head_dim_v=st.sampled_from([16, 128, 256]),
    ranks=st.integers(1, 3),
)


@MODES
@settings(max_examples=150, deadline=None)
@given(problem=problems, share=st.floats(0, 1))
def test_a_workspace_that_holds_the_unsplit_call_holds_what_is_planned_for_it(
    make: Planner, kernel: KernelLimits, problem: Problem, share: float
) -> None:
    least = make(problem, DEVICE, kernel, SplitPolicy.off()).workspace_bytes
    most = make(problem, DEVICE, kernel, HEURISTIC).workspace_bytes
    have = least + int(share * max(most - least, 0))
    assert planned(make, kernel, problem, have).workspace_bytes <= have
    assert planned(make, kernel, problem, least - 1).workspace_bytes in (least, most)


@MODES
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_workspace_of_n_splits_is_used_for_n_splits(
    make: Planner, kernel: KernelLimits, ranks: int
) -> None:
    problem = problem_of(1, ranks=ranks)
    for splits in (2, 5, 16):
        limited = make(problem, DEVICE, kernel, SplitPolicy.heuristic(max_split_k=splits))
        assert limited.workspace_bytes > 0
        assert planned(make, kernel, problem, limited.workspace_bytes) == limited


@MODES
def test_enough_or_unknown_workspace_changes_nothing(make: Planner, kernel: KernelLimits) -> None:
    problem = problem_of(1)
    free = make(problem, DEVICE, kernel, HEURISTIC)
    assert planned(make, kernel, problem, None) == free
    assert planned(make, kernel, problem, free.workspace_bytes) == free
    assert planned(make, kernel, problem, free.workspace_bytes - 1) != free


def test_decode_of_many_query_tiles_is_not_split_where_their_ranges_find_no_room() -> None:
    problem = problem_of(60, batch_size=1)
    two_ranges = plan_decode(problem, DEVICE, DECODE, SplitPolicy.heuristic(max_split_k=2))
    found = planned(plan_decode, DECODE, problem, two_ranges.workspace_bytes - 1)
    assert found == plan_decode(problem, DEVICE, DECODE, SplitPolicy.off())


def test_other_policies_are_taken_at_their_word() -> None:
    policy = SplitPolicy.fixed(8)
    found = plan_within(plan, problem_of(1), DEVICE, PREFILL, policy, 0)
    assert found == plan(problem_of(1), DEVICE, PREFILL, policy)


# --- the C++ side ---------------------------------------------------------------------------------

MAIN = """
#include <iostream>

#include "attn/plan_within.h"
#include "attn/workspace.h"

int main() {
  for (long bytes, most, of_one; std::cin >> bytes >> most >> of_one;) {
    std::cout << attn::splits_that_fit(bytes, static_cast<int>(most), [&](int bound) {
      attn::Workspace workspace;
      workspace.workspace_bytes = bound * of_one;
      return workspace;
    }) << '\\n';
  }
}
"""


def test_cpp_finds_the_same_bound_of_splits(compile_main: Callable[[str, str], Path]) -> None:
    rng = random.Random(0)
    cases = [
        (rng.randrange(1 << rng.randrange(1, 40)), rng.choice([0, 1, 2, 3, 128, 5000]), of_one)
        for of_one in (1, 256, 66560)
        for _ in range(300)
    ]
    text = "\n".join(" ".join(map(str, case)) for case in cases)
    program = compile_main("within", MAIN)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)

    some = plan(problem_of(1), DEVICE, PREFILL, HEURISTIC)

    def expected(have: int, most: int, of_one: int) -> int:
        return splits_that_fit(
            have, most, lambda bound: replace(some, workspace_bytes=bound * of_one)
        )

    assert [int(line) for line in done.stdout.split()] == [expected(*case) for case in cases]
