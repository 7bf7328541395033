# SPDX-License-Identifier: Apache-2.0
"""One rank of a group on NCCL: `rank_process.py SCENARIO ...`, started once per GPU by test_nccl.py
with the environment of torch.distributed (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from harness import (
    attention_for,
    bounds,
    everything_given,
    launch,
    plan_of,
    problem_of,
    same_bits,
    verdict,
)
from ranks import rank_problem

from attn_codegen.config import Cache, Dtype
from attn_runtime import ContextParallel, ContextParallelError
from attn_runtime.plan import SplitPolicy
from attn_runtime.ring import RingAttention
from cases import Kernel, Task, batch_for, kernel_named, random_tasks
from criterion import complaints, lse_limit
from decode_cases import decode_config, decode_kernel, decode_tasks
from reference import Batch
from reference_torch import TorchResult, attention, attention_at_input_precision

KERNELS = (
    "prefill_sm80_bf16_d128_paged_causal",
    "prefill_sm90_bf16_d128_paged_causal",
    "prefill_sm90_f16_d128_linear_full",
    "prefill_sm80_f16_d64_block_causal",
)
SHARDINGS = (("interleaved", 1), ("contiguous", 1), ("zigzag", 1), ("interleaved", 16))
TIMEOUT_S = 3.0


def problems() -> None:
    """Random problems, every sharding, both ways to the whole output; some ranks have no key."""
    decode = decode_kernel(decode_config(128, Dtype.BF16, Cache.PAGED))
    for kernel in (*map(kernel_named, KERNELS), decode):
        name = kernel.config.name
        draw = decode_tasks if kernel is decode else random_tasks
        tasks = [*islice(draw(kernel), 4)]
        tasks.append(Task(batch_for(kernel, [5, 1], [1, 130]), split=SplitPolicy.fixed(3)))
        for at, task in enumerate(tasks):
            sharding, chunk = SHARDINGS[at % 4]
            for output in ("complete", "reduced"):
                group = ContextParallel(sharding=sharding, chunk=chunk, output=output)
                attn = attention_for(kernel.config, task.batch, task.split, group)
                own = rank_problem(problem_of(kernel, task), task, group)
                if output == "reduced" and task.batch.finished:
                    continue  # refused
                found = launch(own, attn, **bounds(task.batch, task.slack))
                group.wait()
                wrong = verdict(own, found)
                assert not wrong, f"{name} {sharding} {output} {task}: {wrong}"


def nccl4py() -> None:
    """A communicator of nccl4py: every way to an output, and a ring."""
    from nccl import core

    size, rank = dist.get_world_size(), dist.get_rank()
    ids = [core.get_unique_id() if rank == 0 else None]
    dist.broadcast_object_list(ids, device=torch.device("cuda", rank))
    communicator = core.Communicator.init(size, rank, ids[0])
    kernel = kernel_named(KERNELS[0])
    for task in islice(random_tasks(kernel), 4):
        for output in ("complete", "reduced"):
            if output == "reduced" and task.batch.finished:
                continue
            group = ContextParallel(communicator, output=output)
            attn = attention_for(kernel.config, task.batch, task.split, group)
            own = rank_problem(problem_of(kernel, task), task, group)
            found = launch(own, attn, **bounds(task.batch, task.slack))
            group.wait()
            wrong = verdict(own, found)
            assert not wrong, f"{output} {task}: {wrong}"
    ring(communicator)


def scattered() -> None:
    """Each rank has its own half of the tokens."""
    kernel = kernel_named(KERNELS[0])
    size, rank = dist.get_world_size(), dist.get_rank()
    for q_len in (size, 32 * size):
        task = Task(batch_for(kernel, [q_len], [700 + q_len]))
        whole = problem_of(kernel, task)
        group = ContextParallel(output="scattered")
        own = rank_problem(whole, task, group)
        attn = attention_for(kernel.config, task.batch, "heuristic", group)
        output = launch(own, attn, **bounds(task.batch))
        group.wait()
        expected = launch(
            whole, attention_for(kernel.config, task.batch, "heuristic"), **bounds(task.batch)
        )
        rows = slice(rank * q_len // size, (rank + 1) * q_len // size)
        difference = (output.out[rows].float() - expected.out[rows].float()).abs().max()
        assert difference < 0.02, f"{q_len}: {difference}"


def in_flight() -> None:
    """Two attentions on two streams, call by call: each finds its own parts."""
    kernel = kernel_named(KERNELS[0])
    group = ContextParallel()
    streams, calls = [torch.cuda.Stream(), torch.cuda.Stream()], []
    for at in range(2):
        task = Task(batch_for(kernel, [1 + 40 * at], [700 + at]), seed=at)
        own = rank_problem(problem_of(kernel, task), task, group)
        calls.append((own, attention_for(kernel.config, task.batch, "heuristic", group), task))
    torch.cuda.synchronize()
    outputs = []
    for _ in range(10):
        outputs = []
        for stream, (own, attn, task) in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(launch(own, attn, **bounds(task.batch)))
    torch.cuda.synchronize()
    for (own, _, task), output in zip(calls, outputs, strict=True):
        wrong = verdict(own, output)
        assert not wrong, f"{task}: {wrong}"


def in_rounds() -> None:
    """What a round of heads leaves is exchanged beside the next: the same bits as in one
    round."""
    for name in KERNELS:
        kernel = kernel_named(name)
        batch = batch_for(kernel, [300, 1], [900, 300], num_heads=16, num_kv_heads=4)
        task = Task(batch, split=SplitPolicy.fixed(2))
        for output in ("complete", "reduced"):
            outputs = []
            for rounds in (1, 2, 4):
                group = ContextParallel(output=output, rounds=rounds)
                attn = attention_for(kernel.config, task.batch, task.split, group)
                own = rank_problem(problem_of(kernel, task), task, group)
                outputs.append(launch(own, attn, **bounds(task.batch)))
                group.wait()
                wrong = verdict(own, outputs[-1])
                assert not wrong, f"{name} {output} {rounds}: {wrong}"
            for other in outputs[1:]:
                assert output == "reduced" or same_bits(outputs[0].out, other.out)
                assert same_bits(outputs[0].lse, other.lse)


def captured() -> None:
    """A call in a CUDA graph, exchange and all, replayed with other queries."""
    for kernel in map(kernel_named, KERNELS[:2]):
        for rounds in (1, 2):
            replay_captured(kernel, ContextParallel(rounds=rounds))


def replay_captured(kernel: Kernel, group: ContextParallel) -> None:
    """Captures a call of a group, and replays it."""
    task = Task(batch_for(kernel, [40, 1], [700, 300]))
    own = rank_problem(problem_of(kernel, task), task, group)
    attn = attention_for(kernel.config, task.batch, "heuristic", group)
    given = bounds(task.batch)
    given["workspace"] = torch.empty(
        plan_of(own, attn, own.call | given).workspace_bytes, dtype=torch.uint8, device="cuda"
    )
    output = launch(own, attn, **given)
    group.wait()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        attn(**own.call, **given, out=output.out, lse=output.lse)
    for _ in range(3):
        own.call["q"].mul_(-1.5)
        own.q.mul_(-1.5)
        graph.replay()
        torch.cuda.synchronize()
        wrong = verdict(own, output)
        assert not wrong, f"{task}: {wrong}"


def ring(communicator: Any = None) -> None:
    """Long prompts round the ring, twice with the same buffers."""
    for lens, mask in (((1000, 65), "causal"), ((4096,), "causal"), ((777,), "full")):
        batch = Batch(lens, lens, 8, 2, 128, 128, mask == "causal")
        torch.manual_seed(1)
        q, k, v = (torch.randn(sum(lens), h, 128, device="cuda").bfloat16() for h in (8, 2, 2))
        attn = RingAttention(communicator, num_heads=8, num_kv_heads=2, head_dim=128, mask=mask)
        own = torch.tensor(attn.layout(lens).tokens(), device="cuda")
        for _ in range(2):
            out, lse = attn(q[own], k[own], v[own], lens=lens, return_lse=True)
        attn.group.wait()
        exact = attention(batch, q, k, v)
        got = TorchResult(exact.out.clone(), exact.lse.clone())
        got.out[own], got.lse[:, own] = out.double(), lse.double()
        rounded = attention_at_input_precision(batch, q, k, v)
        wrong = complaints(batch, "bf16", got, exact, rounded, lse_limit(batch, q, k))
        assert not wrong, f"{lens} {mask}: {wrong}"


def failing() -> None:
    """The last rank leaves after a call: the others are told so within the time that they set."""
    attend, group = small_call()
    attend()
    group.wait()
    leave_last_or_be_told(attend, group)


def failing_replay() -> None:
    """The last rank leaves after a replay of a graph: those who watch theirs are told so."""
    attend, group = small_call()
    attend()
    group.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        attend()

    def replay() -> None:
        with group.watch(torch.cuda.current_stream()):
            graph.replay()

    replay()
    group.wait()
    leave_last_or_be_told(replay, group)


def absent() -> None:
    """The last rank leaves before its first call, in which NCCL would connect it."""
    leave_last_or_be_told(*small_call())


def small_call() -> tuple[Callable[[], object], ContextParallel]:
    """A call of few rows, and its group."""
    kernel = kernel_named(KERNELS[0])
    group = ContextParallel(timeout_s=TIMEOUT_S)
    task = Task(batch_for(kernel, [3], [500]))
    attn = attention_for(kernel.config, task.batch, "off", group)
    own = rank_problem(problem_of(kernel, task), task, group)
    attn.prepare()
    given = everything_given(own, attn, bounds(task.batch))
    return lambda: attn(**given), group


def leave_last_or_be_told(attend: Callable[[], object], group: ContextParallel) -> None:
    """The end of the process: of the last rank at once, of the others when they know."""
    dist.barrier()
    torch.cuda.synchronize()
    if group.ranks.rank == group.ranks.size - 1:
        print("leaves", flush=True)
        os._exit(7)
    begin = time.monotonic()
    try:
        attend()
        group.wait()
    except ContextParallelError as error:
        print(f"told after {time.monotonic() - begin:.1f} s: {error}", flush=True)
        begin = time.monotonic()
        torch.cuda.synchronize()
        print(f"the GPU was free after {time.monotonic() - begin:.1f} s", flush=True)
        os._exit(0)
    raise AssertionError("an exchange without its other rank ended")


def main() -> None:
    """Joins the group and runs the scenarios."""
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    scenarios = {
        scenario.__name__: scenario
        for scenario in (
            *(problems, scattered, in_flight, in_rounds, captured, ring, nccl4py),
            *(failing, failing_replay, absent),
        )
    }
    for name in sys.argv[1:]:
        scenarios[name]()
        torch.cuda.synchronize()
        dist.barrier()
        print(f"{name} right", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
