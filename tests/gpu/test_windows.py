# SPDX-License-Identifier: Apache-2.0
"""Blocks in front of every window are gone: rows hold NaN, entries of the table are wild."""

from __future__ import annotations

import pytest
from harness import attention_for, bounds, launch, problem_of, verdict

from attn_codegen.config import Mode
from attn_runtime.plan import SplitPolicy
from cases import Task, batch_for, kernel_of
from layouts import first_keys
from reference_torch import torch

pytestmark = pytest.mark.gpu

NAMES = [
    f"{mode}_{arch}_bf16_d128_{cache}_causal"
    for mode, arch in (("prefill", "sm80"), ("prefill", "sm90"), ("decode", "sm80"))
    for cache in ("paged", "block")
]


@pytest.mark.parametrize("split", [SplitPolicy.off(), SplitPolicy.fixed(3)], ids=["off", "fixed"])
@pytest.mark.parametrize("block_len", [7, 16, 64])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_in_front_of_a_window_may_be_gone(
    name: str, block_len: int, split: SplitPolicy
) -> None:
    if "sm90" in name and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a device of compute capability 9.0")
    kernel = kernel_of(name)
    longest = 5 if kernel.config.mode is Mode.DECODE else 200
    batch = batch_for(kernel, [longest, 1, 3], [900, 500, 30], window=77)
    assert first_keys(batch) == (900 - longest - 76, 423, 0)
    problem = problem_of(kernel, Task(batch, block_len=block_len, split=split))
    output = launch(problem, attention_for(kernel.config, batch, split), **bounds(batch))
    assert not verdict(problem, output)
