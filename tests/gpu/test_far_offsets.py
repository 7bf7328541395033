# SPDX-License-Identifier: Apache-2.0
"""More than 2^31 elements between one row and another: q, out, the workspace and every cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from cpp_program import kernel_called
from harness import (
    Output,
    attention_for,
    bounds,
    ints,
    launch,
    problem_of,
    same_bits,
    verdict,
)

from attn_codegen.config import Mode
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for
from criterion import complaints, lse_limit
from layouts import LinearStyle
from reference import Batch
from reference_torch import TorchResult, attention, attention_at_input_precision, torch

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
FAR = 2**31 + 2**20
"""Elements."""


def parameter(*names: str) -> pytest.MarkDecorator:
    kernels = [pytest.param(kernel_called(name), id=name) for name in names]
    return pytest.mark.parametrize("kernel", kernels)


def some_batch(kernel: Kernel) -> Batch:
    """Two sequences, of as many queries as the mode is for."""
    longest = 5 if kernel.config.mode is Mode.DECODE else 70
    return batch_for(kernel, [longest, 3], [200, 555])


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Gigabytes come and go with each test."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 60 * 2**30:
        pytest.skip(f"needs 60 GiB of free GPU memory: {free / 2**30:.0f} GiB are free")
    yield
    torch.cuda.empty_cache()


@parameter("prefill_sm80_bf16_d128_linear_causal")
def test_linear_rows_and_q_may_be_far_apart(kernel: Kernel) -> None:
    problem = problem_of(
        kernel,
        Task(
            batch_for(kernel, [100, 29], [150, 151]),
            linear_style=LinearStyle.CONTIGUOUS,
            split=SplitPolicy.fixed(2),
        ),
    )
    step = FAR // 128 // 8 * 8  # the last token of each is beyond 2^31 elements
    base = torch.empty(302 * step, dtype=torch.bfloat16, device="cuda")
    near = problem.call
    far = {
        "k": spread(near["k"][:301], base, 0, step),
        "v": spread(near["v"][:301], base, step // 3 // 8 * 8, step),
        "q": spread(near["q"], base, 2 * (step // 3) // 8 * 8, step),
    }
    assert far["q"].stride(0) * 128 > 2**31
    attn = attention_for(kernel.config, problem.batch, SplitPolicy.fixed(2))
    expected = launch(problem, attn, **bounds(problem.batch))
    got = launch(problem, attn, **bounds(problem.batch), **far)
    assert same_bits(got.out, expected.out)
    assert same_bits(got.lse, expected.lse)
    assert not verdict(problem, got)


@parameter("prefill_sm80_bf16_d128_paged_full", "decode_sm80_bf16_d128_paged_causal")
def test_pools_may_be_larger_than_2_31_elements(kernel: Kernel) -> None:
    problem = problem_of(kernel, Task(some_batch(kernel), block_len=16))
    attn = attention_for(kernel.config, problem.batch, SplitPolicy.fixed(3))
    expected = launch(problem, attn, **bounds(problem.batch))
    near = problem.call
    blocks = len(near["k"])
    elements = near["k"][0].numel()
    count = FAR // elements + blocks
    far = dict(near)
    for name in ("k", "v"):
        pool = torch.empty(count, *near[name].shape[1:], dtype=torch.bfloat16, device="cuda")
        pool[count - blocks :] = near[name]
        far[name] = pool
    table = near["block_table"]
    used = (table >= 0) & (table < blocks)
    far["block_table"] = torch.where(used, table + (count - blocks), table)
    got = launch(problem, attn, **bounds(problem.batch), **far)
    assert same_bits(got.out, expected.out)
    assert not verdict(problem, got)


@parameter("prefill_sm80_f16_d64_block_causal", "decode_sm80_f16_d64_block_causal")
def test_layer_offset_may_exceed_2_32_bytes(kernel: Kernel) -> None:
    problem = problem_of(kernel, Task(some_batch(kernel), block_len=64))
    attn = attention_for(kernel.config, problem.batch, SplitPolicy.fixed(3))
    expected = launch(problem, attn, **bounds(problem.batch))
    shift = 5 * 2**30
    far = {
        "block_ptrs": problem.call["block_ptrs"] - shift,
        "layer_offset": problem.call["layer_offset"] + shift,
    }
    got = launch(problem, attn, **bounds(problem.batch), **far)
    assert same_bits(got.out, expected.out)


@parameter("prefill_sm80_bf16_d128_linear_full")
def test_262144_tokens_of_64_heads_are_right_in_their_last_rows(kernel: Kernel) -> None:
    tokens, tail = 262_144, 77
    batch = batch_for(kernel, [tokens, tail], [40, 300], num_heads=64, num_kv_heads=8)
    split = SplitPolicy.fixed(2)
    small = replace(batch, q_lens=(3, tail))
    problem = problem_of(kernel, Task(small, split=split))
    q = torch.empty(tokens + tail, 64, 128, dtype=torch.bfloat16, device="cuda").normal_()
    q[-tail:] = problem.q[-tail:]
    problem.call |= {"q": q, "cu_q_len": ints(batch.cu_q_len)}
    problem.q = q
    assert q.numel() > 2**31
    attn = attention_for(kernel.config, batch, split)
    problem.batch = batch
    output = launch(problem, attn, **bounds(batch))

    # Element 2^31 of q and out is the first of the second sequence.
    for first in (0, tokens - 40):
        rows = slice(first, min(first + 40, tokens))
        one = replace(batch, q_lens=(rows.stop - rows.start,), k_lens=(40,))
        check(one, output, rows, q, problem.k[:40], problem.v[:40])
    last = slice(tokens, tokens + tail)
    one = replace(batch, q_lens=(tail,), k_lens=(300,))
    check(one, output, last, q, problem.k[40:], problem.v[40:])


def check(
    batch: Batch,
    output: Output,
    rows: slice,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    """The rows of a larger output are right: they are those of `batch`, which has no others."""
    got = TorchResult(output.out[rows], output.lse[:, rows])
    exact = attention(batch, q[rows], k, v)
    rounded = attention_at_input_precision(batch, q[rows], k, v)
    found = complaints(batch, "bf16", got, exact, rounded, lse_limit(batch, q[rows], k))
    assert not found, f"{rows}\n" + "\n".join(found)


def spread(rows: torch.Tensor, base: torch.Tensor, offset: int, step: int) -> torch.Tensor:
    """The rows in `base`, `step` elements from one token to the next."""
    far = torch.as_strided(base, rows.shape, (step, rows.shape[2], 1), offset)
    far.copy_(rows)
    return far
