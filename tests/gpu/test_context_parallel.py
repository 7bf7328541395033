# SPDX-License-Identifier: Apache-2.0
"""Keys spread over the ranks of a group, simulated on one GPU: any number of ranks is right."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from harness import Output, attention_for, bounds, ints, launch, problem_of, same_bits, verdict
from ranks import outputs_of_ranks

from attn_codegen.config import Cache, Dtype, Mode
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_named, random_tasks
from decode_cases import decode_config, decode_kernel, decode_tasks
from reference_torch import torch

pytestmark = pytest.mark.gpu

KERNELS = [
    "prefill_sm80_bf16_d128_paged_causal",
    "prefill_sm90_bf16_d128_paged_causal",
    "prefill_sm80_f16_d64_block_causal",
    "prefill_sm90_f16_d64_block_causal",
    "prefill_sm80_bf16_d128_linear_full",
    "prefill_sm90_bf16_d128_linear_causal",
    "prefill_sm80_bf16_d192_v128_paged_full",
    "prefill_sm90_bf16_d256_paged_full",
    "prefill_sm80_f16_d256_linear_causal",
    "prefill_sm90_f16_d128_linear_full",
    "prefill_sm90_bf16_d192_v128_linear_causal",
]
SHARDINGS = [("interleaved", 1), ("contiguous", 1), ("zigzag", 1), ("interleaved", 16)]
SIZES = range(1, 65)


def cases() -> list[object]:
    """Every number of ranks; kernels and shardings walk along, each pair on its own."""
    found = []
    for size in SIZES:
        name, (sharding, chunk) = KERNELS[size % len(KERNELS)], SHARDINGS[size % len(SHARDINGS)]
        output = "scaled" if size % 3 == 0 else "complete"
        kernel = kernel_named(name)
        label = f"{size}-{name}-{sharding}{chunk}-{output}"
        found.append(pytest.param(kernel, size, sharding, chunk, output, id=label))
    return found


@pytest.mark.parametrize(("kernel", "size", "sharding", "chunk", "output"), cases())
def test_any_number_of_ranks_gives_the_whole_attention(
    kernel: Kernel, size: int, sharding: str, chunk: int, output: str
) -> None:
    tasks = islice(random_tasks(kernel), size % 4, size % 4 + (3 if size < 9 else 1))
    for task in tasks:
        check(kernel, task, size, sharding, chunk, output)


def decode_cases() -> list[object]:
    """Kernels of each cache; numbers of ranks and shardings walk along."""
    pairs = (
        (Cache.PAGED, 128, Dtype.BF16),
        (Cache.BLOCK, 64, Dtype.F16),
        (Cache.LINEAR, 128, Dtype.BF16),
    )
    kernels = [decode_kernel(decode_config(dim, dtype, cache)) for cache, dim, dtype in pairs]
    found = []
    for at, size in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 31, 33, 48, 63, 64)):
        kernel, (sharding, chunk) = kernels[at % 3], SHARDINGS[at % len(SHARDINGS)]
        label = f"{size}-{kernel.config.name}-{sharding}{chunk}"
        found.append(pytest.param(kernel, size, sharding, chunk, id=label))
    return found


@pytest.mark.parametrize(("kernel", "size", "sharding", "chunk"), decode_cases())
def test_decode_over_any_number_of_ranks_is_right(
    kernel: Kernel, size: int, sharding: str, chunk: int
) -> None:
    for task in islice(decode_tasks(kernel), size % 5, size % 5 + (4 if size < 9 else 2)):
        check(kernel, task, size, sharding, chunk, "scaled" if size % 4 == 3 else "complete")


@pytest.mark.parametrize(("sharding", "chunk"), SHARDINGS)
@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(n), id=n) for n in KERNELS])
def test_ranks_without_keys_change_nothing(kernel: Kernel, sharding: str, chunk: int) -> None:
    batch = batch_for(kernel, [5, 1, 70, 3], [3, 0, 1, 130])
    check(kernel, Task(batch, split=SplitPolicy.fixed(3)), 5, sharding, chunk, "complete")


@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(n), id=n) for n in KERNELS])
def test_every_rank_of_a_complete_exchange_has_the_same_bits(kernel: Kernel) -> None:
    batch = batch_for(kernel, [40, 1], [700, 300])
    _, outputs = outputs_of_ranks(kernel, Task(batch), 3, "interleaved", 1, "complete")
    for other in outputs[1:]:
        assert same_bits(outputs[0].out, other.out)
        assert same_bits(outputs[0].lse, other.lse)


def kernels_of_rounds() -> list[object]:
    """Prefill of both families and decode, over every cache."""
    names = [kernel_named(name) for name in KERNELS]
    decode = [decode_kernel(decode_config(128, Dtype.BF16, cache)) for cache in Cache]
    return [pytest.param(kernel, id=kernel.config.name) for kernel in (*names, *decode)]


@pytest.mark.parametrize("split", [SplitPolicy.off(), SplitPolicy.fixed(3)], ids=["off", "fixed"])
@pytest.mark.parametrize("kernel", kernels_of_rounds())
def test_rounds_of_heads_leave_the_same_bits(kernel: Kernel, split: SplitPolicy) -> None:
    lens = [8, 1, 0, 3] if kernel.config.mode is Mode.DECODE else [140, 1, 0, 33]
    batch = batch_for(kernel, lens, [700, 300, 9, 40], num_heads=16, num_kv_heads=4)
    task = Task(batch, split=split)
    for output in ("complete", "scaled"):
        problem, expected = outputs_of_ranks(kernel, task, 3, "interleaved", 1, output, 1)
        assert output == "scaled" or not verdict(problem, expected[0])
        for rounds in (2, 4):
            _, found = outputs_of_ranks(kernel, task, 3, "interleaved", 1, output, rounds)
            for one, other in zip(expected, found, strict=True):
                assert same_bits(one.out, other.out) and same_bits(one.lse, other.lse), (
                    f"{output}, {rounds} rounds"
                )


@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(n), id=n) for n in KERNELS])
def test_queries_may_stand_anywhere_in_their_sequence(kernel: Kernel) -> None:
    """A prompt in two pieces, each with the position of its first query, is the whole prompt."""
    window = 90 if kernel.config.mask.value == "causal" else 0
    whole = problem_of(kernel, Task(batch_for(kernel, [200], [300], window=window)))
    attn = attention_for(kernel.config, whole.batch, "heuristic")
    expected = launch(whole, attn, **bounds(whole.batch))
    for first, rows in ((0, 70), (70, 130)):
        piece = replace_queries(whole, first, rows)
        got = launch(piece, attn, **bounds(whole.batch), offset_q=ints([100 + first]))
        live = slice(first, first + rows)
        assert torch.allclose(got.out.float(), expected.out[live].float(), atol=0.03)
        assert torch.allclose(got.lse, expected.lse[:, live], atol=1e-4)


def replace_queries(problem, first, rows):  # type: ignore[no-untyped-def]
    """The problem with only `rows` queries, from `first` on."""
    call = problem.call | {
        "q": problem.call["q"][first : first + rows],
        "cu_q_len": ints([0, rows]),
    }
    return replace(problem, call=call)


def check(kernel: Kernel, task: Task, size: int, sharding: str, chunk: int, output: str) -> None:
    """The ranks together give the attention of the task."""
    problem, outputs = outputs_of_ranks(kernel, task, size, sharding, chunk, output)
    if output == "scaled" and size > 1:
        live = torch.from_numpy(task.batch.live_rows()).to("cuda")
        shares = torch.stack([one.out for one in outputs]).float().sum(0)
        out = outputs[0].out.clone()
        out[: task.batch.token_num][live] = shares[: task.batch.token_num][live].to(out.dtype)
        outputs = [Output(out, one.lse) for one in outputs[-1:]]
    else:
        outputs = [outputs[0], outputs[-1]]
    found = [line for one in outputs for line in verdict(problem, one)]
    if found:
        where = f"{size} ranks, {sharding} {chunk}, {output}"
        pytest.fail(f"{where}: {task}\n    " + "\n    ".join(found), pytrace=False)
