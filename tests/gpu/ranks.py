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
    """A communicator that knows what the other ranks gave the last time."""

    size: int
    rank: int
    parts: dict[int, torch.Tensor]
    rotations: int = 0
    aborted: bool = False

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """Keeps this rank's part, and copies those of the others in."""
        whole = torch.as_tensor(Span(first, self.size * count), device="cuda")
        whole = whole.view(self.size, count)
        self.parts[self.rank] = whole[self.rank].clone()
        for rank, part in self.parts.items():
            whole[rank] = part

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


def outputs_of_ranks(
    kernel: Kernel, task: Task, size: int, sharding: str, chunk: int, output: str
) -> tuple[Problem, list[Output]]:
    """The whole problem, and what each rank has at the end of its call. All ranks run twice: in the
    second round each finds the parts that the others left in the first."""
    problem, bits = problem_of(kernel, task), draw_inputs(kernel, task)
    parts: dict[int, torch.Tensor] = {}
    calls = []
    for rank in range(size):
        group = ContextParallel(
            Replay(size, rank, parts), sharding=sharding, chunk=chunk, output=output
        )
        attn = attention_for(kernel.config, task.batch, task.split, group)
        calls.append((rank_problem(problem, task, group, bits), attn))
    found: list[Output] = []
    for _ in range(2):
        found = [launch(own, attn, **bounds(task.batch, task.slack)) for own, attn in calls]
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
