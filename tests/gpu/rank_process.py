# SPDX-License-Identifier: Apache-2.0
"""One rank of a group on NCCL: `rank_process.py SCENARIO ...`, started once per GPU by test_nccl.py
with the environment of torch.distributed (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""

from __future__ import annotations

import os
import sys
from itertools import accumulate, islice
from typing import Any

import torch
import torch.distributed as dist
from harness import (
    attention_for,
    bounds,
    ints,
    launch,
    plan_of,
    problem_of,
    same_bits,
    verdict,
)
from rank_failures import absent, failing, failing_replay
from ranks import rank_problem

from attn_codegen.config import Cache, Dtype
from attn_runtime import Attention, CacheWriter, ContextParallel
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


def growing() -> None:
    """A decode step in a CUDA graph: lengths grow, each rank writes its own of the new keys, and
    the parts are gathered."""
    heads, kv_heads, prompts, steps = 8, 2, (37, 1), 6
    shape = {"num_kv_heads": kv_heads, "head_dim": 128}
    group = ContextParallel()
    attn = Attention(num_heads=heads, mode="decode", context_parallel=group, **shape)
    writer = CacheWriter(context_parallel=group, **shape)
    torch.manual_seed(5)  # the same on every rank
    tokens = max(prompts) + steps
    q = torch.randn(steps, 2, heads, 128, device="cuda").bfloat16()
    keys = torch.randn(2, 2, tokens, kv_heads, 128, device="cuda").bfloat16()  # K and V
    pools = torch.full((2, 6, 16, kv_heads, 128), float("nan"), device="cuda").bfloat16()
    cache = {"block_table": torch.arange(6, device="cuda").int().view(2, 3)}
    ends = ints([0, *accumulate(prompts)])
    whole = [torch.cat([part[b, :length] for b, length in enumerate(prompts)]) for part in keys]
    writer(*whole, *pools, cu_q_len=ends, cu_k_len=ends, **cache)
    new_q, new_keys, out = (torch.empty_like(of) for of in (q[0], keys[:, :, 0], q[0]))
    one_each = ints([0, 1, 2])
    bounds_ = {"max_q_len": 1, "max_k_len": tokens}
    size = attn.workspace_size(token_num=2, batch_size=2, **bounds_)
    given = cache | {"cu_q_len": one_each, "cu_k_len": ends}
    room = torch.empty(size, dtype=torch.uint8, device="cuda")

    def step() -> None:
        ends.add_(one_each)
        writer(*new_keys, *pools, **given)
        attn(new_q, *pools, out=out, workspace=room, **given, **bounds_)

    run = step
    for at in range(steps):
        lens = [length + at + 1 for length in prompts]
        new_q.copy_(q[at])
        for b, length in enumerate(lens):
            new_keys[:, b] = keys[:, b, length - 1]
        run()
        batch = Batch((1, 1), tuple(lens), heads, kv_heads, 128, 128, True)
        k, v = (torch.cat([part[b, :length] for b, length in enumerate(lens)]) for part in keys)
        exact = attention(batch, new_q, k, v).out
        group.wait()
        error = (out.double() - exact).abs().max()
        assert error < 0.02, f"step {at}: {error}"
        if at == 0:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
            run = graph.replay


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


def main() -> None:
    """Joins the group and runs the scenarios."""
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    scenarios = {
        scenario.__name__: scenario
        for scenario in (
            *(problems, scattered, in_flight, in_rounds, captured, growing, ring, nccl4py),
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
