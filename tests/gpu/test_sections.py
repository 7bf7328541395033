# SPDX-License-Identifier: Apache-2.0
"""Tiles are computed in sections of heads (attn/cta_map.cuh), and none is left out."""

from __future__ import annotations

import pytest
from harness import attention_for, bounds, launch, plan_of, problem_of, verdict

from attn_runtime.plan import Plan, SplitPolicy
from cases import Batch, Kernel, Task, batch_for, kernel_of

pytestmark = pytest.mark.gpu

KERNELS = ["prefill_sm80_bf16_d128_linear_full", "prefill_sm80_bf16_d128_paged_causal"]

some_kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_of(name), id=name) for name in KERNELS]
)


@some_kernels
@pytest.mark.parametrize("splits", [1, 2])
def test_several_sections_of_equal_sequences_are_right(kernel: Kernel, splits: int) -> None:
    lens = [300 - index % 7 for index in range(71)]
    batch = batch_for(kernel, lens, lens, num_heads=6, num_kv_heads=6)
    plan = checked(kernel, batch, SplitPolicy.fixed(splits))
    assert plan.tiles_per_sequence == 3
    assert plan.section <= 6 * len(lens) // 2


@some_kernels
def test_several_sections_of_heads_are_right_where_lengths_differ(kernel: Kernel) -> None:
    lens = [2500, 1, 0, 130, 70]
    batch = batch_for(kernel, lens, lens, num_heads=36, num_kv_heads=36)
    plan = checked(kernel, batch, SplitPolicy.off())
    assert plan.tiles_per_sequence == 0
    assert plan.section <= 36 // 2


def checked(kernel: Kernel, batch: Batch, split: SplitPolicy) -> Plan:
    """The plan of a call that gave the right output."""
    problem = problem_of(kernel, Task(batch, split=split))
    attn = attention_for(kernel.config, batch, split)
    assert not verdict(problem, launch(problem, attn, **bounds(batch)))
    return plan_of(problem, attn, problem.call | bounds(batch))
