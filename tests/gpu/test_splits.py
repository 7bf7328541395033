# SPDX-License-Identifier: Apache-2.0
"""Splitting the keys: any count, any size, any group, and which results may not depend on what."""

from __future__ import annotations

import pytest
from harness import (
    assert_bits_are_those_alone,
    assert_neighbours_stay,
    attention_for,
    bounds,
    difference,
    launch,
    plan_of,
    problem_of,
    verdict,
)

from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_named, kernel_of

pytestmark = pytest.mark.gpu

CAUSAL_PAGED = "prefill_sm80_bf16_d128_paged_causal"
KERNELS = [
    "prefill_sm80_bf16_d128_linear_full",
    CAUSAL_PAGED,
    "prefill_sm80_f16_d64_block_causal",
    "prefill_sm80_f16_d256_linear_causal",
    "prefill_sm80_bf16_d192_v128_paged_full",
    "prefill_sm80_bf16_d192_paged_causal_t128x64",
]
some_kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_of(name), id=name) for name in KERNELS]
)
one_kernel = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_named(CAUSAL_PAGED), id=CAUSAL_PAGED)]
)


@some_kernels
@pytest.mark.parametrize("splits", [1, 2, 3, 5, 8, 13, 31, 32, 33, 48, 63, 64])
def test_any_split_count_is_right(kernel: Kernel, splits: int) -> None:
    keys = 64 * kernel.cta_s
    lens = [1, 3, kernel.cta_q + 2], [keys + 1, keys - 1, keys // 2 + 5]
    check(kernel, Task(batch_for(kernel, *lens), split=SplitPolicy.fixed(splits)), splits)


@some_kernels
@pytest.mark.parametrize("window", [1, 200, 1000])
def test_windows_are_split_right(kernel: Kernel, window: int) -> None:
    lens = [kernel.cta_q + 2, 5], [1500, 1111]
    batch = batch_for(kernel, *lens, window=window)
    check(kernel, Task(batch, split=SplitPolicy.fixed(64)))
    check(kernel, Task(batch, split=SplitPolicy.fixed_size(2 * kernel.cta_s)))


@one_kernel
@pytest.mark.parametrize("group", range(1, 17))
def test_any_group_size_is_right(kernel: Kernel, group: int) -> None:
    batch = batch_for(kernel, [70, 1], [70, 900], num_heads=2 * group)
    check(kernel, Task(batch, split=SplitPolicy.fixed(4)))


@some_kernels
def test_heuristic_splits_long_keys_and_is_right(kernel: Kernel) -> None:
    task = Task(batch_for(kernel, [2, 1], [16_000, 3]), split=SplitPolicy.heuristic())
    check(kernel, task, at_least=4)


@some_kernels
@pytest.mark.parametrize("tokens", [1, 100, 512])
def test_fixed_size_gives_the_same_bits_alone_and_in_a_batch(kernel: Kernel, tokens: int) -> None:
    split = SplitPolicy.fixed_size(tokens)
    q_lens, k_lens = [33, 1, kernel.cta_q + 1, 7], [700, 2049, 1300, 0]
    problem = problem_of(kernel, Task(batch_for(kernel, q_lens, k_lens), split=split))
    attn = attention_for(kernel.config, problem.batch, split)
    assert_bits_are_those_alone(problem, attn, slack=3000)


@some_kernels
def test_sequences_do_not_change_their_neighbours(kernel: Kernel) -> None:
    assert_neighbours_stay(kernel, batch_for(kernel, [40, 50, 60], [400, 500, 600]))


@one_kernel
def test_max_split_k_caps_the_workspace(kernel: Kernel) -> None:
    split = SplitPolicy.heuristic(max_split_k=3)
    problem = problem_of(kernel, Task(batch_for(kernel, [1], [30_000]), split=split))
    attn = attention_for(kernel.config, problem.batch, split)
    plan = plan_of(problem, attn, problem.call | bounds(problem.batch))
    assert plan.split_cnt == 3
    assert not verdict(problem, launch(problem, attn, **bounds(problem.batch)))


def check(kernel: Kernel, task: Task, at_least: int = 1) -> None:
    """The task is planned with that many splits at least, its result right and repeatable."""
    problem = problem_of(kernel, task)
    attn = attention_for(kernel.config, task.batch, task.split)
    plan = plan_of(problem, attn, problem.call | bounds(task.batch))
    assert plan.split_cnt >= at_least
    output = launch(problem, attn, **bounds(task.batch))
    found = verdict(problem, output)
    found += difference("second launch", launch(problem, attn, **bounds(task.batch)), output)
    if found:
        pytest.fail(f"{task}\n    " + "\n    ".join(found), pytrace=False)
