# SPDX-License-Identifier: Apache-2.0
"""Decode: one to eight query tokens per sequence, over caches of any length and any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from harness import (
    MOST_LINES,
    Output,
    Problem,
    assert_bits_are_those_alone,
    assert_neighbours_stay,
    assert_tasks_pass,
    attention_for,
    bounds,
    difference,
    everything_given,
    fresh_output,
    launch,
    problem_earlier,
    problem_of,
    same_bits,
    verdict,
)
from test_preset import check

from attn_codegen.config import Cache, Dtype
from attn_codegen.tiling import tilings
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for
from decode_cases import decode_config, decode_kernel, decode_kernels, decode_tasks
from reference import cumulated
from reference_torch import torch

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
SLEEP_CYCLES = 100_000_000
"""About 50 ms of an H200."""

WILD = (2_000_000_000, 100_000_000, -50)
"""Lengths of memory that nobody has written yet."""
WRITE_LATE = """
extern "C" __global__ void write_late(int* to, const int* from, int count) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  __nanosleep(20000);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    to[i] = from[i];
  }
}
"""

POLICIES = (
    SplitPolicy.heuristic(),
    SplitPolicy.off(),
    SplitPolicy.fixed(16),
    SplitPolicy.fixed_size(512),
)


def of_kernels(*kernels: Kernel) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "kernel", [pytest.param(kernel, id=kernel.config.name) for kernel in kernels]
    )


def kernel_of(cache: Cache, head_dim: int = 128, dtype: Dtype = Dtype.BF16) -> Kernel:
    return decode_kernel(decode_config(head_dim, dtype, cache))


every_cache = of_kernels(*map(kernel_of, Cache))
caches_of_blocks = of_kernels(kernel_of(Cache.PAGED), kernel_of(Cache.BLOCK, 64, Dtype.F16))
one_kernel = of_kernels(kernel_of(Cache.PAGED))
TALL = replace(kernel_of(Cache.PAGED).config, tile="t16x64")
plain_calls = pytest.mark.parametrize(
    ("kernel", "queries"),
    [
        pytest.param(kernel, queries, id=f"{kernel.config.name}-{queries}")
        for kernel, queries in (
            (kernel_of(Cache.PAGED), 1),
            (kernel_of(Cache.BLOCK, 64, Dtype.F16), 1),
            (decode_kernel(TALL), 1),
            (decode_kernel(TALL), 4),
        )
    ],
)
every_policy = pytest.mark.parametrize(
    "split", [pytest.param(split, id=split.kind.name.lower()) for split in POLICIES]
)


@of_kernels(*decode_kernels())
def test_decode_kernel_gives_the_oracle_s_output_and_the_same_bits_again(kernel: Kernel) -> None:
    assert_tasks_pass(kernel, decode_tasks(kernel), check)


@every_cache
@every_policy
def test_a_hundred_thousand_keys_are_right(kernel: Kernel, split: SplitPolicy) -> None:
    lens = [8, 1, 3, 1], [100_000, 1, 31_337, 0]
    expect_right(kernel, Task(batch_for(kernel, *lens, num_heads=8, num_kv_heads=1), split=split))


@pytest.mark.parametrize("head_dim", [128, 192, 256])
@pytest.mark.parametrize("stages", [4, 31, 32, 33, 50])
def test_any_count_of_parts_of_a_row_is_right(head_dim: int, stages: int) -> None:
    """Each stage is a range of its own here: one warp adds up to 32 parts, in rounds."""
    kernel = kernel_of(Cache.PAGED, head_dim, Dtype.F16)
    lens = [1], [stages * kernel.cta_s]
    expect_right(kernel, Task(batch_for(kernel, *lens, num_heads=2, num_kv_heads=1)))


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_every_tile_of_a_width_is_right(head_dim: int, queries: int) -> None:
    config = decode_config(head_dim, Dtype.BF16, Cache.PAGED)
    for word, tile in tilings(config).items():
        kernel = Kernel(replace(config, tile=word), tile.cta_q, tile.cta_s)
        lens = [queries, 2, queries, 1], [4000, 33, 129, 0]
        batch = batch_for(kernel, *lens, num_heads=10, num_kv_heads=2)
        expect_right(kernel, Task(batch, block_len=16))


@every_cache
@every_policy
@pytest.mark.parametrize("count", [33, 200, 300])
def test_many_short_sequences_are_right(kernel: Kernel, split: SplitPolicy, count: int) -> None:
    k_lens = [(37 * b) % 211 for b in range(count)]
    q_lens = [b % 3 for b in range(count)]
    expect_right(kernel, Task(batch_for(kernel, q_lens, k_lens), split=split))


@one_kernel
@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 32, 33, 40, 64])
@pytest.mark.parametrize("queries", [1, 2, 5, 8])
def test_any_group_size_with_any_count_of_queries_is_right(
    kernel: Kernel, group: int, queries: int
) -> None:
    lens = [queries, max(1, queries - 1), 1], [900, 65, queries]
    expect_right(kernel, Task(batch_for(kernel, *lens, num_heads=2 * group), block_len=16))


@one_kernel
@pytest.mark.parametrize("block_len", [1, 5, 7, 16, 33, 64, 100, 128, 1000])
@every_policy
def test_any_block_len_is_right(kernel: Kernel, block_len: int, split: SplitPolicy) -> None:
    lens = [1, 4, 2], [3000, block_len, 2 * block_len + 1]
    expect_right(kernel, Task(batch_for(kernel, *lens), block_len=block_len, split=split))


@every_cache
@every_policy
@pytest.mark.parametrize("window", [1, 64, 1000])
def test_a_window_with_sinks_is_right(kernel: Kernel, split: SplitPolicy, window: int) -> None:
    batch = batch_for(
        kernel,
        [5, 1, 3, 1],
        [3000, 700, 2, 0],
        window=window,
        sinks=(0.5, -float("inf"), 12.0, -40.0),
    )
    expect_right(kernel, Task(batch, split=split))


@every_cache
@every_policy
def test_empty_sequences_give_zeros_and_no_keys_minus_infinity(
    kernel: Kernel, split: SplitPolicy
) -> None:
    batch = batch_for(kernel, [1, 0, 4, 2], [0, 500, 0, 1], sinks=(1.0, 2.0, 3.0, 4.0))
    problem = problem_of(kernel, Task(batch, split=split))
    output = launch(problem, attention_for(kernel.config, batch, split), **bounds(batch))
    assert not verdict(problem, output)
    assert (output.out[:6] == 0).all()  # the last row alone sees a key
    assert torch.isneginf(output.lse[:, :6]).all()
    assert torch.isfinite(output.lse[:, 6]).all()


@every_cache
@pytest.mark.parametrize("tokens", [64, 100, 512])
def test_fixed_size_gives_the_same_bits_whatever_the_batch_mates(
    kernel: Kernel, tokens: int
) -> None:
    split = SplitPolicy.fixed_size(tokens)
    q_lens, k_lens = [1, 8, 3, 1, 2, 1], [700, 2049, 1300, 0, 20_000, 65]
    problem = problem_of(kernel, Task(batch_for(kernel, q_lens, k_lens), split=split))
    attn = attention_for(kernel.config, problem.batch, split)
    assert_bits_are_those_alone(problem, attn, slack=3000)


@caches_of_blocks
@every_policy
def test_a_captured_graph_stays_right_as_lengths_grow(kernel: Kernel, split: SplitPolicy) -> None:
    batch = batch_for(kernel, [1, 4, 1, 2, 1], [5000, 900, 66, 300, 1])
    problem = problem_of(kernel, Task(batch, split=split))
    attn = attention_for(kernel.config, batch, split)
    attn.prepare()
    given = everything_given(problem, attn, bounds(problem.batch))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attn(**given)
    for k_lens in (
        (0, 0, 0, 0, 0),
        (1, 4, 1, 2, 1),
        (63, 64, 65, 66, 0),
        (64, 65, 66, 67, 1),
        (4999, 0, 1, 300, 1),
        (5000, 900, 66, 300, 1),
        (1, 900, 2, 299, 0),
    ):
        earlier = problem_earlier(problem, k_lens)
        problem.call["cu_k_len"].copy_(torch.from_numpy(cumulated(k_lens)))
        output = Output(given["out"], given["lse"])
        for part, fresh in zip(output, fresh_output(problem), strict=True):
            part.copy_(fresh)
        graph.replay()
        found = verdict(earlier, output)
        assert not found, (k_lens, found)


@every_cache
@every_policy
def test_five_hundred_launches_give_the_same_bits(kernel: Kernel, split: SplitPolicy) -> None:
    """The counters of the reduction in the kernel are back at zero after each."""
    problem = problem_of(kernel, Task(batch_for(kernel, [1, 3, 1], [3000, 900, 63]), split=split))
    attn = attention_for(kernel.config, problem.batch, split)
    expected = launch(problem, attn, **bounds(problem.batch))
    assert not verdict(problem, expected)
    given = everything_given(problem, attn, bounds(problem.batch))
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(500):
        given["out"].zero_()
        attn(**given)
        differing += (given["out"] != expected.out).sum()
    assert differing.item() == 0


@plain_calls
@pytest.mark.parametrize("k_lens", [(1000,), (5000, 4, 0, 64), (700,) * 32, (700,) * 33])
def test_a_plain_call_gives_the_bits_of_one_that_says_where_its_queries_lie(
    kernel: Kernel, queries: int, k_lens: tuple[int, ...]
) -> None:
    """Calls with offset_q are not plain: they have the kernel of all calls."""
    q_lens = [min(queries, k_len) for k_len in k_lens]
    problem = problem_of(kernel, Task(batch_for(kernel, q_lens, list(k_lens))))
    attn = attention_for(kernel.config, problem.batch, "heuristic")
    plain = launch(problem, attn, **bounds(problem.batch))
    assert not verdict(problem, plain)
    before = [k_len - q_len for k_len, q_len in zip(k_lens, q_lens, strict=True)]
    offsets = torch.tensor(before, dtype=torch.int32, device="cuda")
    assert not difference(
        "with offset_q", launch(problem, attn, offset_q=offsets, **bounds(problem.batch)), plain
    )


def same_after_late_writes(problem: Problem, name: str, stale: Sequence[torch.Tensor]) -> None:
    """The array `name` is written while the call's first CTAs run already, who find `stale`."""
    attn = attention_for(problem.kernel.config, problem.batch, "heuristic")
    expected = launch(problem, attn, **bounds(problem.batch))
    assert not verdict(problem, expected)
    given = everything_given(problem, attn, bounds(problem.batch))
    right = given[name].clone()
    write_late = torch.cuda._compile_kernel(WRITE_LATE, "write_late")
    for found in stale:
        for _ in range(20):
            given[name].copy_(found)
            given["out"].zero_()
            write_late((1, 1, 1), (1024, 1, 1), (given[name], right, right.numel()))
            attn(**given)
            assert same_bits(given["out"], expected.out)


# Calls with an entry of their own, and one that has none.
late_calls = pytest.mark.parametrize(
    ("kernel", "queries"),
    [
        pytest.param(kernel_of(Cache.PAGED), 1, id="one_token"),
        pytest.param(decode_kernel(TALL), 4, id="four_tokens"),
        pytest.param(kernel_of(Cache.PAGED), 2, id="two_tokens"),
    ],
)
# The lengths of few sequences lie in one warp, of more in several.
FEW = (2000, 65, 5000)
MORE = tuple(100 + 37 * i % 700 for i in range(200))


@late_calls
@pytest.mark.parametrize("k_lens", [FEW, MORE], ids=["few", "more"])
def test_lengths_that_the_launch_before_writes_late_are_right(
    kernel: Kernel, queries: int, k_lens: tuple[int, ...]
) -> None:
    """Hopper's kernels begin while it runs, and look at the lengths before they wait for it."""
    problem = problem_of(kernel, Task(batch_for(kernel, [queries] * len(k_lens), list(k_lens))))
    count = len(k_lens)
    shorter, none = [length // 2 for length in k_lens], [0] * count
    swapped, wild = list(reversed(k_lens)), [WILD[i % 3] for i in range(count)]
    stale = [
        torch.tensor([0, *accumulate(lens)], dtype=torch.int64).to(torch.int32)
        for lens in (shorter, none, swapped, wild)
    ]
    same_after_late_writes(problem, "cu_k_len", stale)


@late_calls
@pytest.mark.parametrize("k_lens", [FEW, MORE], ids=["few", "more"])
def test_query_lengths_that_the_launch_before_writes_late_are_right(
    kernel: Kernel, queries: int, k_lens: tuple[int, ...]
) -> None:
    """Few sequences of a plain call read their rows of Q before they have looked again."""
    problem = problem_of(kernel, Task(batch_for(kernel, [queries] * len(k_lens), list(k_lens))))
    right = problem.call["cu_q_len"]
    beyond = torch.arange(len(k_lens) + 1, dtype=torch.int32, device="cuda") + 1_000_000_000
    same_after_late_writes(problem, "cu_q_len", [right * 0, right - 1_000_000, right + 1, beyond])


@late_calls
@pytest.mark.parametrize("k_lens", [FEW, MORE], ids=["few", "more"])
def test_a_block_table_that_the_launch_before_writes_late_is_right(
    kernel: Kernel, queries: int, k_lens: tuple[int, ...]
) -> None:
    """Hopper's kernels look up the first keys before they wait for it: many sequences ask L2 for
    them, few begin to copy them."""
    problem = problem_of(kernel, Task(batch_for(kernel, [queries] * len(k_lens), list(k_lens))))
    table = problem.call["block_table"]
    stale = [torch.full_like(table, entry) for entry in (0, -1, 2_000_000_000)]
    same_after_late_writes(problem, "block_table", stale)


@one_kernel
def test_calls_of_two_streams_do_not_disturb_each_other(kernel: Kernel) -> None:
    split = SplitPolicy.heuristic()
    problems = [
        problem_of(kernel, Task(batch_for(kernel, [1, 2], k_lens), split=split, seed=seed))
        for seed, k_lens in enumerate(([9000, 40], [300, 12_000]))
    ]
    attn = attention_for(kernel.config, problems[0].batch, split)
    expected = [launch(problem, attn, **bounds(problem.batch)) for problem in problems]
    calls = [everything_given(problem, attn, bounds(problem.batch)) for problem in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, given in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                given["out"].zero_()
                attn(**given)
    torch.cuda.synchronize()
    for given, output in zip(calls, expected, strict=True):
        assert same_bits(given["out"], output.out)


@every_cache
def test_sequences_do_not_change_their_neighbours(kernel: Kernel) -> None:
    assert_neighbours_stay(kernel, batch_for(kernel, [2, 3, 4], [400, 500, 600]))


@every_cache
def test_a_complete_call_allocates_nothing_and_waits_for_nothing(kernel: Kernel) -> None:
    problem = problem_of(kernel, Task(batch_for(kernel, [1, 1], [9000, 70])))
    attn = attention_for(kernel.config, problem.batch, "heuristic")
    attn.prepare()
    given = everything_given(problem, attn, bounds(problem.batch))
    attn(**given)
    torch.cuda.synchronize()
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda._sleep(SLEEP_CYCLES)
    attn(**given)
    assert not torch.cuda.current_stream().query(), "the sleep must still be running"
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations


def expect_right(kernel: Kernel, task: Task) -> None:
    found = check(kernel, task)
    if found:
        pytest.fail(f"{task}\n    " + "\n    ".join(found[:MOST_LINES]), pytrace=False)
