# SPDX-License-Identifier: Apache-2.0
"""Keys in front of every window are gone: rows hold NaN, entries of the block table are wild."""

from __future__ import annotations

import pytest
from harness import attention_for, bounds, launch, problem_of, verdict

from attn_codegen.config import Mode
from attn_runtime.plan import SplitPolicy
from cases import Task, batch_for, kernel_of
from layouts import first_keys
from reference import Batch
from reference_torch import torch

pytestmark = pytest.mark.gpu

NAMES = [
    f"{mode}_{arch}_bf16_d128_{cache}_causal"
    for mode, arch in (("prefill", "sm80"), ("prefill", "sm90"), ("decode", "sm80"))
    for cache in ("paged", "block")
]

LINEAR_NAMES = (
    "prefill_sm80_bf16_d128_linear_causal",
    "prefill_sm90_bf16_d128_linear_causal",
    "prefill_sm90_bf16_d64_linear_full_t64x64k2",
    "decode_sm80_bf16_d128_linear_causal",
)
splits = pytest.mark.parametrize(
    "split", [SplitPolicy.off(), SplitPolicy.fixed(3)], ids=["off", "fixed"]
)


@splits
@pytest.mark.parametrize("block_len", [7, 16, 64])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_in_front_of_a_window_may_be_gone(
    name: str, block_len: int, split: SplitPolicy
) -> None:
    check(name, Task(batch_of(name), block_len=block_len, split=split))


@splits
@pytest.mark.parametrize("name", LINEAR_NAMES)
def test_rows_in_front_of_a_window_may_be_anything(name: str, split: SplitPolicy) -> None:
    check(name, Task(batch_of(name), split=split))


def batch_of(name: str) -> Batch:
    """Sequences whose first keys no query sees, and one whose keys all are seen."""
    kernel = kernel_of(name)
    longest = 5 if kernel.config.mode is Mode.DECODE else 200
    batch = batch_for(kernel, [longest, 1, 3], [900, 500, 30], window=77)
    assert first_keys(batch) == (900 - longest - 76, 423, 0)
    return batch


def check(name: str, task: Task) -> None:
    """The kernel's output on the task is right."""
    if "sm90" in name and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a device of compute capability 9.0")
    kernel = kernel_of(name)
    problem = problem_of(kernel, task)
    attn = attention_for(kernel.config, task.batch, task.split)
    output = launch(problem, attn, **bounds(task.batch))
    assert not verdict(problem, output)
