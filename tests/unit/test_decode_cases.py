# SPDX-License-Identifier: Apache-2.0
"""The random decode tasks cover what they are meant to cover, within their size."""

from __future__ import annotations

import pytest

from cases import BLOCK_LENS, Kernel, Task
from decode_cases import (
    GROUP_SIZES,
    MOST_KEY_ELEMENTS,
    MOST_QUERIES,
    SPLITS,
    decode_kernels,
    decode_tasks,
)
from layouts import LinearStyle, PagedStyle

KERNELS = decode_kernels()


@pytest.fixture(scope="module")
def tasks() -> dict[Kernel, list[Task]]:
    return {kernel: list(decode_tasks(kernel)) for kernel in KERNELS}


def test_every_decode_kernel_takes_every_value_of_every_axis(
    tasks: dict[Kernel, list[Task]],
) -> None:
    for own in tasks.values():
        assert {task.batch.group_size for task in own} == set(GROUP_SIZES)
        assert {max(task.batch.q_lens) for task in own} == set(range(1, MOST_QUERIES + 1))
        assert {task.block_len for task in own} == set(BLOCK_LENS)
        assert {task.split for task in own} == set(SPLITS)
        assert {task.linear_style for task in own} == set(LinearStyle)
        assert {task.paged_style for task in own} == set(PagedStyle)
        assert any(task.batch.sinks for task in own)
        assert any(any(task.batch.finished) for task in own)
        assert any(task.batch.window for task in own)


def test_decode_tasks_meet_empty_sequences_and_every_edge(
    tasks: dict[Kernel, list[Task]],
) -> None:
    pairs = [
        (q_len, k_len)
        for own in tasks.values()
        for task in own
        for q_len, k_len in zip(task.batch.q_lens, task.batch.k_lens, strict=True)
    ]
    for k_len in (0, 1, 63, 64, 65, 9000):
        assert any(one == k_len for _, one in pairs)
    assert any(q_len == 0 for q_len, _ in pairs)
    assert any(q_len > k_len > 0 for q_len, k_len in pairs)


def test_decode_tasks_stay_small_and_are_found_again(tasks: dict[Kernel, list[Task]]) -> None:
    for kernel, own in tasks.items():
        assert own == list(decode_tasks(kernel))
        for task in own:
            batch = task.batch
            elements = batch.key_num * batch.num_kv_heads * kernel.config.head_dim
            assert batch.token_num > 0 and elements <= MOST_KEY_ELEMENTS
            assert min(batch.k_lens) >= 0
            assert "\n" not in str(task)
