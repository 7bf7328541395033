# SPDX-License-Identifier: Apache-2.0
"""Decode calls of many rows: Hopper's prefill kernels compute them in the memory of decode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_quantised
from harness import (
    Output,
    Problem,
    bounds,
    difference,
    everything_given,
    free_attention,
    fresh_output,
    launch,
    problem_earlier,
    problem_of,
    verdict,
)
from kv_harness import Layout

from attn_codegen.config import Arch, Cache, Dtype, KvDtype
from attn_runtime.attention import Attention
from attn_runtime.decode_plan import DECODE_TOKENS
from attn_runtime.plan import Plan
from cases import Batch, Kernel, Task, batch_for
from decode_cases import decode_config, decode_kernel
from reference import cumulated
from reference_torch import torch

pytestmark = pytest.mark.gpu


def kernel_of(cache: Cache, head_dim: int = 128, dtype: Dtype = Dtype.BF16) -> Kernel:
    return decode_kernel(replace(decode_config(head_dim, dtype, cache), arch=Arch.SM90))


def of_kernels(*kernels: Kernel) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "kernel", [pytest.param(kernel, id=kernel.config.name) for kernel in kernels]
    )


every_cache = of_kernels(*map(kernel_of, Cache))
every_width = of_kernels(*(kernel_of(Cache.PAGED, width, Dtype.F16) for width in (64, 192, 256)))
one_kernel = of_kernels(kernel_of(Cache.PAGED))


def is_prefill(plan: Plan) -> bool:
    """Only prefill kernels pack heads as such."""
    return plan.packed_heads > 1


def planned(problem: Problem, attn: Attention) -> Plan:
    batch = problem.batch
    return attn.plan(token_num=batch.token_num, batch_size=len(batch.q_lens), **bounds(batch))


def expect_right(kernel: Kernel, batch: Batch, **task: Any) -> None:
    """By a prefill kernel, and the same bits again."""
    problem = problem_of(kernel, Task(batch, **task))
    attn = free_attention(kernel.config, batch)
    assert is_prefill(planned(problem, attn))
    output = launch(problem, attn, **bounds(batch))
    assert not verdict(problem, output)
    assert not difference("again", launch(problem, attn, **bounds(batch)), output)


@every_cache
@pytest.mark.parametrize("group", [5, 8, 12, 16])
@pytest.mark.parametrize("window", [0, 70])
def test_many_rows_are_right_beside_few_and_none(kernel: Kernel, group: int, window: int) -> None:
    if kernel.config.cache is Cache.LINEAR and window:
        pytest.skip("needs a cache of blocks: over linear rows, a window is of decode kernels")
    q_lens, k_lens = [8, 8, 1, 0, 8, 5, 8], [5000, 8, 900, 77, 0, 3, 129]
    batch = batch_for(
        kernel,
        q_lens,
        k_lens,
        num_heads=2 * group,
        window=window,
        finished=(False, False, True, False, False, False, False),
    )
    expect_right(kernel, batch)


@one_kernel
@pytest.mark.parametrize("group", [32, 64])
def test_the_heads_of_a_wide_group_share_a_tile(kernel: Kernel, group: int) -> None:
    expect_right(kernel, batch_for(kernel, [2, 1, 2, 0], [3000, 65, 2, 7], num_heads=2 * group))


@every_cache
@pytest.mark.parametrize("k_lens", [[1000], [999, 64], [16, 3000, 1, 0]])
def test_a_cluster_merges_the_splits_of_few_sequences(kernel: Kernel, k_lens: list[int]) -> None:
    batch = batch_for(kernel, [8, 5, 8, 8][: len(k_lens)], k_lens, num_heads=16)
    plan = planned(problem_of(kernel, Task(batch)), free_attention(kernel.config, batch))
    assert plan.cluster == plan.split_cnt > 1
    expect_right(kernel, batch)


@every_width
def test_every_width_is_right(kernel: Kernel) -> None:
    expect_right(kernel, batch_for(kernel, [8, 7, 8], [4000, 33, 700], num_heads=16))


@one_kernel
@pytest.mark.parametrize("block_len", [7, 16, 100, 256])
def test_any_block_len_is_right(kernel: Kernel, block_len: int) -> None:
    batch = batch_for(kernel, [8, 8], [3000, 2 * block_len + 9], num_heads=16)
    expect_right(kernel, batch, block_len=block_len)


@pytest.mark.parametrize("cache", [Cache.PAGED, Cache.BLOCK])
@pytest.mark.parametrize("kv_dtype", [KvDtype.INT8, KvDtype.INT4])
def test_many_rows_over_codes_are_right(kv_dtype: KvDtype, cache: Cache) -> None:
    config = replace(kernel_of(cache).config, kv_dtype=kv_dtype)
    batch = Batch((8, 8, 8, 5), (4000, 8, 900, 0), 10, 2, 128, 128, causal=True)
    attn = Attention(
        mode="decode", num_heads=10, num_kv_heads=2, head_dim=128, kv_dtype=kv_dtype, cache=cache
    )
    longest = {"max_q_len": 8, "max_k_len": 4000}
    assert is_prefill(attn.plan(token_num=29, batch_size=4, **longest))
    assert test_quantised.verdict(config, test_quantised.Task(batch, Layout(64), tile=None)) == []


@one_kernel
def test_what_decode_kernels_alone_do_is_still_done(kernel: Kernel) -> None:
    batch = batch_for(kernel, [8, 3], [3000, 70], num_heads=16, sinks=(0.5, -3.0) * 8)
    problem = problem_of(kernel, Task(batch))
    output = launch(problem, free_attention(kernel.config, batch), **bounds(batch))
    assert not verdict(problem, output)


@every_cache
def test_a_captured_graph_stays_right_as_lengths_grow(kernel: Kernel) -> None:
    if kernel.config.cache is Cache.LINEAR:
        pytest.skip("needs a cache of blocks: rows of a linear one move as lengths grow")
    problem = problem_of(kernel, Task(batch_for(kernel, [8] * 3, [5000, 900, 66], num_heads=16)))
    attn = free_attention(kernel.config, problem.batch)
    attn.prepare()
    assert is_prefill(planned(problem, attn))
    given = everything_given(problem, attn, bounds(problem.batch))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attn(**given)
    for k_lens in ((8, 8, 8), (0, 63, 66), (4999, 64, 65), (5000, 900, 66), (9, 0, 0)):
        problem.call["cu_k_len"].copy_(torch.from_numpy(cumulated(k_lens)))
        output = Output(given["out"], given["lse"])
        for part, fresh in zip(output, fresh_output(problem), strict=True):
            part.copy_(fresh)
        graph.replay()
        found = verdict(problem_earlier(problem, k_lens), output)
        assert not found, (k_lens, found)


@one_kernel
def test_one_workspace_serves_every_batch(kernel: Kernel) -> None:
    """As of decode kernels: it is that of neither the batch nor the lengths."""
    sizes = set()
    for count, keys in ((1, 70_000), (3, 900), (9, 2000), (40, 300)):
        batch = batch_for(kernel, [DECODE_TOKENS] * count, [keys] * count, num_heads=16)
        problem = problem_of(kernel, Task(batch))
        attn = free_attention(kernel.config, batch)
        plan = planned(problem, attn)
        assert is_prefill(plan)
        sizes.add((plan.workspace_bytes, plan.partial_ML_offset, plan.counter_cnt))
        assert not verdict(problem, launch(problem, attn, **bounds(batch)))
    assert len(sizes) == 1
