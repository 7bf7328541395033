# SPDX-License-Identifier: Apache-2.0
"""Splits of a tile that the CTAs of a cluster merge, where all of a launch run at a time."""

from __future__ import annotations

import pytest
from harness import (
    attention_for,
    bounds,
    difference,
    launch,
    plan_of,
    problem_of,
    verdict,
)

from attn_runtime.plan import SplitPolicy
from cases import Batch, Kernel, Task, batch_for, kernel_of

pytestmark = pytest.mark.gpu

KERNELS = [
    "prefill_sm90_bf16_d128_linear_full_t64x128",
    "prefill_sm90_bf16_d128_paged_causal_t64x128",
    "prefill_sm90_f16_d128_block_causal_t64x64",
    "prefill_sm90_f16_d64_paged_causal_t64x128",
    "prefill_sm90_bf16_d256_paged_full_t64x64",
]
some_kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_of(name), id=name) for name in KERNELS]
)


def expect_right(kernel: Kernel, batch: Batch, splits: int) -> None:
    """By clusters of so many CTAs, and the same bits again."""
    task = Task(batch, split=SplitPolicy.heuristic(max_split_k=splits))
    problem = problem_of(kernel, task)
    attn = attention_for(kernel.config, batch, task.split)
    plan = plan_of(problem, attn, problem.call | bounds(batch))
    assert (plan.cluster, plan.split_cnt, plan.reduce_grid_x) == (splits, splits, 0)
    output = launch(problem, attn, **bounds(batch))
    assert not verdict(problem, output)
    assert not difference("again", launch(problem, attn, **bounds(batch)), output)


@some_kernels
@pytest.mark.parametrize("splits", [2, 3, 7, 8])
def test_clusters_of_any_size_are_right(kernel: Kernel, splits: int) -> None:
    expect_right(kernel, batch_for(kernel, [2], [16_000], num_heads=2), splits)


@some_kernels
@pytest.mark.parametrize("window", [0, 3000])
def test_tiles_with_fewer_splits_than_ctas_and_with_none_are_right(
    kernel: Kernel, window: int
) -> None:
    q_lens, k_lens = [70, 3, 0, 1, 64, 2, 1], [9000, 100, 50, 0, 64, 3000, 8000]
    batch = batch_for(
        kernel,
        q_lens,
        k_lens,
        num_heads=2,
        window=window,
        finished=(False, False, False, False, False, True, False),
    )
    expect_right(kernel, batch, 4)
