# SPDX-License-Identifier: Apache-2.0
"""The random tasks of a kernel cover what they are meant to cover, within their size."""

from __future__ import annotations

import pytest

from attn_codegen.config import Cache
from cases import (
    BLOCK_LENS,
    GROUP_SIZES,
    MOST_ELEMENTS,
    SLACKS,
    SPLITS,
    Kernel,
    Task,
    manifest_kernels,
    random_tasks,
)
from layouts import LinearStyle, PagedStyle

KERNELS = manifest_kernels()


@pytest.fixture(scope="module")
def tasks() -> dict[Kernel, list[Task]]:
    return {kernel: list(random_tasks(kernel)) for kernel in KERNELS}


def test_every_kernel_takes_every_value_of_every_axis(tasks: dict[Kernel, list[Task]]) -> None:
    for kernel, own in tasks.items():
        assert {task.batch.group_size for task in own} == set(GROUP_SIZES)
        assert {task.block_len for task in own} == set(BLOCK_LENS)
        assert {task.split for task in own} == set(SPLITS)
        assert {task.slack for task in own} == set(SLACKS)
        assert {task.linear_style for task in own} == set(LinearStyle)
        assert {task.paged_style for task in own} == set(PagedStyle)
        edges = {0, 1, kernel.cta_s - 1, kernel.cta_s, kernel.cta_s + 1}
        assert edges < {task.batch.window for task in own}
        assert any(any(task.batch.finished) for task in own) or kernel.config.cache is Cache.LINEAR


def test_preset_meets_every_edge_of_lengths(tasks: dict[Kernel, list[Task]]) -> None:
    pairs = [
        (kernel, q_len, k_len)
        for kernel, own in tasks.items()
        for task in own
        for q_len, k_len in zip(task.batch.q_lens, task.batch.k_lens, strict=True)
    ]
    for edge in (-1, 0, 1):
        assert any(q_len == kernel.cta_q + edge for kernel, q_len, _ in pairs)
        assert any(k_len == kernel.cta_s + edge for kernel, _, k_len in pairs)
        assert any((q_len > k_len) - (q_len < k_len) == edge for _, q_len, k_len in pairs)
    for length in (0, 1):
        assert any(q_len == length for _, q_len, _ in pairs)
        assert any(k_len == length for _, _, k_len in pairs)


def test_tasks_stay_small_and_are_found_again(tasks: dict[Kernel, list[Task]]) -> None:
    for kernel, own in tasks.items():
        assert own == list(random_tasks(kernel))
        for task in own:
            width = kernel.config.head_dim + kernel.config.head_dim_v
            assert 0 < task.batch.token_num * task.batch.num_heads * width <= MOST_ELEMENTS
            assert "\n" not in str(task)
