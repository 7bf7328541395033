# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a group are told when one of them leaves: scenarios of rank_process.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import attention_for, bounds, everything_given, problem_of
from ranks import rank_problem

from attn_runtime import ContextParallel, ContextParallelError
from cases import Task, batch_for, kernel_named

KERNEL = "prefill_sm80_bf16_d128_paged_causal"
TIMEOUT_S = 3.0


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
    kernel = kernel_named(KERNEL)
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
        time.sleep(TIMEOUT_S)  # rank 0 has the store, by which the others may learn it
        os._exit(0)
    raise AssertionError("an exchange without its other rank ended")
