# SPDX-License-Identifier: Apache-2.0
"""Decode: the parts of short sequences meet in the shared memory of a cluster of CTAs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from harness import (
    Output,
    Problem,
    attention_for,
    bounds,
    difference,
    everything_given,
    fresh_output,
    launch,
    plan_of,
    problem_earlier,
    problem_of,
    verdict,
)

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype
from attn_runtime.attention import Attention
from attn_runtime.kernel import HOPPER
from cases import Task, batch_for
from decode_cases import decode_config, decode_kernel
from reference import cumulated
from reference_torch import torch

pytestmark = pytest.mark.gpu

LENGTHS = {
    "one sequence": (1000,),
    "one of two stages": (65,),
    "one of three stages": (190,),
    "one of thirty stages": (1900,),
    "two": (1024, 1024),
    "two unlike ones": (700, 1024),
    "three": (500, 449, 512),
    "four": (960, 960, 960, 960),
    "four, one of them empty": (1024, 0, 1024, 1024),
    "eight": (1024,) * 8,
}


def config_of(head_dim: int, dtype: Dtype) -> AttentionConfig:
    return replace(decode_config(head_dim, dtype, Cache.PAGED), arch=Arch.SM90)


def problem_with(head_dim: int, dtype: Dtype, group: int, k_lens: tuple[int, ...]) -> Problem:
    kernel = decode_kernel(config_of(head_dim, dtype))
    ones = [1] * len(k_lens)
    batch = batch_for(kernel, ones, list(k_lens), num_heads=8 * group, num_kv_heads=8)
    return problem_of(kernel, Task(batch, block_len=16))


def attention_of(head_dim: int, dtype: Dtype, problem: Problem) -> Attention:
    """Of Hopper's kernels, which alone have clusters."""
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("clusters are Hopper's")
    attn = attention_for(config_of(head_dim, dtype), problem.batch, "heuristic")
    attn.prepare()
    return attn


@pytest.mark.parametrize("k_lens", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "group"),
    [
        (128, Dtype.BF16, 1),
        (128, Dtype.BF16, 4),
        (128, Dtype.BF16, 7),
        (128, Dtype.BF16, 8),
        (64, Dtype.F16, 3),
        (80, Dtype.F16, 4),
    ],
)
def test_parts_that_meet_in_a_cluster_give_the_bits_of_those_that_go_through_memory(
    head_dim: int, dtype: Dtype, group: int, k_lens: tuple[int, ...]
) -> None:
    """Calls with offset_q do not come in clusters."""
    problem = problem_with(head_dim, dtype, group, k_lens)
    attn = attention_of(head_dim, dtype, problem)
    near = launch(problem, attn, **bounds(problem.batch))
    assert not verdict(problem, near)
    before = [max(k_len - 1, 0) for k_len in k_lens]
    offsets = torch.tensor(before, dtype=torch.int32, device="cuda")
    assert not difference(
        "with offset_q", launch(problem, attn, offset_q=offsets, **bounds(problem.batch)), near
    )


@pytest.mark.parametrize("k_lens", [(1024,), (1024,) * 4, (1024,) * 8], ids=len)
def test_a_captured_cluster_stays_right_as_lengths_change(k_lens: tuple[int, ...]) -> None:
    problem = problem_with(128, Dtype.BF16, 4, k_lens)
    attn = attention_of(128, Dtype.BF16, problem)
    assert plan_of(problem, attn, problem.call | bounds(problem.batch)).cluster > 1
    given = everything_given(problem, attn, bounds(problem.batch))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attn(**given)
    for first in (0, 1, 64, 65, 300, 577, 1023, 1024):
        for step in (0, 1, 100):
            lengths = tuple(max(first - step * i, 0) for i in range(len(k_lens)))
            earlier = problem_earlier(problem, lengths)
            problem.call["cu_k_len"].copy_(torch.from_numpy(cumulated(lengths)))
            output = Output(given["out"], given["lse"])
            for part, fresh in zip(output, fresh_output(problem), strict=True):
                part.copy_(fresh)
            graph.replay()
            found = verdict(earlier, output)
            assert not found, (lengths, found)


def test_clusters_one_behind_the_other_give_the_same_bits() -> None:
    problem = problem_with(128, Dtype.BF16, 4, (1024,))
    attn = attention_of(128, Dtype.BF16, problem)
    expected = launch(problem, attn, **bounds(problem.batch))
    assert not verdict(problem, expected)
    given = [everything_given(problem, attn, bounds(problem.batch)) for _ in range(200)]
    for call in given:
        attn(**call)
    outputs = [expected.out, *(call["out"] for call in given)]
    assert all(torch.equal(one, other) for one, other in pairwise(outputs))
