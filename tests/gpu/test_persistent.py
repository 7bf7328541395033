# SPDX-License-Identifier: Apache-2.0
"""Persistent kernels: who computes which tile differs from launch to launch, and nothing else."""

from __future__ import annotations

import random

import pytest
from harness import attention_for, bounds, launch, problem_of, verdict

from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_named
from reference_torch import torch

pytestmark = pytest.mark.gpu

LAUNCHES = 10_000
NAMES = [
    "prefill_sm90_bf16_d128_linear_causal",
    "prefill_sm90_bf16_d64_paged_causal",
    "prefill_sm90_f16_d256_block_causal",
]


@pytest.mark.parametrize("block_len", [64, 7])
@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(name), id=name) for name in NAMES])
def test_ten_thousand_launches_give_the_same_bits(kernel: Kernel, block_len: int) -> None:
    # More tiles than the device has multiprocessors, of every length, so that CTAs race for them.
    batch = batch_for(kernel, [900, 3, 260, 0, 513], [900, 700, 260, 40, 1030], num_heads=8)
    problem = problem_of(kernel, Task(batch, block_len=block_len))
    attn = attention_for(kernel.config, batch, SplitPolicy.off())
    expected = launch(problem, attn, **bounds(batch))
    assert not verdict(problem, expected)
    out, lse = torch.empty_like(expected.out), torch.empty_like(expected.lse)
    given = problem.call | bounds(batch) | {"out": out, "lse": lse}
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(LAUNCHES):
        attn(**given)
        differing += (out.view(torch.int16) != expected.out.view(torch.int16)).sum()
        differing += (lse.view(torch.int32) != expected.lse.view(torch.int32)).sum()
    assert differing.item() == 0


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel_named(name), id=name)
        for name in (
            "prefill_sm90_bf16_d128_linear_full",
            "prefill_sm90_bf16_d128_linear_causal",
            "prefill_sm90_bf16_d128_paged_causal",
            "prefill_sm90_bf16_d64_paged_full",
        )
    ],
)
@pytest.mark.parametrize("longest", [100, 256])
def test_tiles_in_turn_share_keys_that_stay_in_shared_memory(kernel: Kernel, longest: int) -> None:
    # So many tiles that each CTA takes them in runs; keys end anywhere.
    rng = random.Random(longest)
    q_lens = [longest - rng.randint(0, 3) for _ in range(60)]
    k_lens = [rng.randint(1, longest) for _ in q_lens]
    batch = batch_for(kernel, q_lens, k_lens, num_heads=64, num_kv_heads=8)
    problem = problem_of(kernel, Task(batch, block_len=64))
    attn = attention_for(kernel.config, batch, SplitPolicy.off())
    assert not verdict(problem, launch(problem, attn, **bounds(batch)))
