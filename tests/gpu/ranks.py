# SPDX-License-Identifier: Apache-2.0
"""The ranks of a context-parallel group, one after another in one process on one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from harness import (
    Output,
    Problem,
    Uploads,
    attention_for,
    bounds,
    cache_call,
    ints,
    launch,
    problem_of,
)

from attn_runtime import ContextParallel
from attn_runtime.communicators import Span
from cases import Inputs, Kernel, Task, draw_inputs
from reference import cumulated
from reference_torch import torch


@dataclass(slots=True)
class Replay:
    """A communicator that knows what the other ranks gave the last time, in each gather of a
    call."""

    size: int
    rank: int
    parts: dict[Any, torch.Tensor]
    gathers: int = 0
    rotations: int = 0
    aborted: bool = False

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """Keeps this rank's part, and copies those of the others in."""
        whole = torch.as_tensor(Span(first, self.size * count), device="cuda")
        whole = whole.view(self.size, count)
        current = torch.cuda.current_stream()
        own = stream == current.cuda_stream
        with torch.cuda.stream(current if own else torch.cuda.ExternalStream(stream)):
            self.parts[self.gathers, self.rank] = whole[self.rank].clone()
            for rank in range(self.size):
                part = self.parts.get((self.gathers, rank))
                if part is not None:
                    whole[rank] = part
        self.gathers += 1

    def all_reduce(self, address: int, count: int, dtype: str, stream: int) -> None:
        """Not simulated."""
        raise NotImplementedError

    def reduce_scatter(self, first: int, count: int, dtype: str, stream: int) -> None:
        """Not simulated."""
        raise NotImplementedError

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """What the rank before would send: what one of those before had in the beginning."""
        torch.cuda.synchronize()
        own, coming = (
            torch.as_tensor(Span(at, count, "u8"), device="cuda") for at in (send, receive)
        )
        self.rotations += 1
        if self.rotations % (self.size - 1) == 1 or self.size == 2:
            self.parts[self.rank] = own.clone()
        step = (self.rotations - 1) % (self.size - 1) + 1
        coming.copy_(self.parts.get((self.rank - step) % self.size, coming))
        torch.cuda.synchronize()

    def abort(self) -> None:
        """Nothing is under way."""
        self.aborted = True

    def is_aborted(self) -> bool:
        """There is no other rank that could."""
        return False


def outputs_of_ranks(
    kernel: Kernel,
    task: Task,
    size: int,
    sharding: str,
    chunk: int,
    output: str,
    rounds: int | None = None,
) -> tuple[Problem, list[Output]]:
    """The whole problem, and what each rank has at the end of its call. All ranks run twice: the
    second time each finds the parts that the others left the first time."""
    problem, bits = problem_of(kernel, task), draw_inputs(kernel, task)
    parts: dict[Any, torch.Tensor] = {}
    calls = []
    for rank in range(size):
        replay = Replay(size, rank, parts)
        group = ContextParallel(
            replay, sharding=sharding, chunk=chunk, output=output, rounds=rounds
        )
        attn = attention_for(kernel.config, task.batch, task.split, group)
        calls.append((rank_problem(problem, task, group, bits), attn, replay))
    found: list[Output] = []
    for _ in range(2):
        found = []
        for own, attn, replay in calls:
            replay.gathers = 0
            found.append(launch(own, attn, **bounds(task.batch, task.slack)))
            torch.cuda.synchronize()  # the next rank reads what was gathered on another stream
    return problem, found


def rank_problem(
    problem: Problem, task: Task, group: ContextParallel, bits: Inputs | None = None
) -> Problem:
    """The problem with the keys of one rank: the same queries and lengths, another cache. `bits`
    are those of draw_inputs, for a caller that has them."""
    batch, kernel = task.batch, problem.kernel
    rng = np.random.default_rng(task.seed + 2 + group.ranks.rank)
    local = replace(batch, k_lens=tuple(group.local_lens(batch.k_lens)))
    own = np.concatenate(
        [
            begin + group.positions(length)
            for begin, length in zip(batch.cu_k_len, batch.k_lens, strict=False)
        ]
    ).astype(np.int64)
    bits, uploads = bits or draw_inputs(kernel, task), Uploads(kernel.config.dtype.value)
    call: dict[str, Any] = dict(problem.call)
    call |= cache_call(
        kernel.config, replace(task, batch=local), bits.k[own], bits.v[own], rng, uploads
    )
    if "block_table" not in call and "block_ptrs" not in call:
        call["cu_rows"] = ints(cumulated(local.k_lens))
    return Problem(kernel, batch, problem.q, problem.k, problem.v, call, uploads)
