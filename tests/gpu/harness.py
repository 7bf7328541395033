# SPDX-License-Identifier: Apache-2.0
"""From a task to arrays on the device, through attn_runtime.Attention, to a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import layouts
from attn_codegen.config import AttentionConfig, Cache
from attn_codegen.tuning import DEFAULT_TILE
from attn_runtime import Attention, ContextParallel
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, draw_inputs
from criterion import complaints, lse_limit
from layouts import Strided
from reference import Batch, Bits, Ints
from reference_torch import (
    DTYPES,
    TorchResult,
    attention,
    attention_at_input_precision,
    from_bits,
    torch,
)

if TYPE_CHECKING:
    from attn_runtime.plan import Plan

DEVICE = "cuda"
MOST_LINES = 3
"""Of failing tasks, and of what is wrong with each."""
OUT_BEFORE = 0x4321
"""Bits of `out` before a call, and of `lse` twice: what an unwritten element still holds."""


class Output(NamedTuple):
    """out [token_num, num_heads, head_dim_v] and lse [num_heads, token_num] of one call."""

    out: torch.Tensor
    lse: torch.Tensor


class Uploads:
    """Buffers on the device, each uploaded once and kept alive; views of one buffer share it."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._buffers: dict[int, tuple[Bits, torch.Tensor]] = {}

    def buffer(self, base: Bits) -> torch.Tensor:
        """The whole buffer."""
        if id(base) not in self._buffers:
            self._buffers[id(base)] = base, from_bits(base, self._dtype, DEVICE)
        return self._buffers[id(base)][1]

    def view(self, strided: Strided) -> torch.Tensor:
        """A view of its buffer."""
        base = self.buffer(strided.base)
        return torch.as_strided(base, strided.shape, strided.strides, strided.offset)


@dataclass(slots=True, eq=False)
class Problem:
    """A task on the device: logical q, k, v, and `call`, the arguments that describe them."""

    kernel: Kernel
    batch: Batch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    call: dict[str, Any]
    uploads: Uploads

    @property
    def dtype(self) -> str:
        """The element type, in the words of the configuration."""
        return self.kernel.config.dtype.value


def attention_for(
    config: AttentionConfig,
    batch: Batch,
    split: SplitPolicy | str,
    context_parallel: ContextParallel | None = None,
) -> Attention:
    """The runtime's Attention of a configuration, held to its tile."""
    assert config.cache is not None and config.mask is not None
    return Attention(
        mode=config.mode,
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v,
        dtype=config.dtype.value,
        cache=config.cache.value,
        mask=config.mask.value,
        window_size=batch.window,
        softmax_scale=batch.scale or None,
        split=split,
        arch=config.arch,
        tile=config.tile or DEFAULT_TILE,
        context_parallel=context_parallel,
    )


def free_attention(config: AttentionConfig, batch: Batch) -> Attention:
    """The runtime's Attention, free to take any tile, and what else computes the same."""
    assert config.cache is not None
    return Attention(
        mode=config.mode,
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=config.head_dim,
        dtype=config.dtype,
        cache=config.cache,
        window_size=batch.window,
    )


def problem_of(kernel: Kernel, task: Task) -> Problem:
    """Draws q, k, v, and lays them out as the task and the kernel's cache ask. Keys in front of
    every window are gone."""
    batch, rng = task.batch, np.random.default_rng(task.seed + 1)
    dtype = kernel.config.dtype.value
    bits = draw_inputs(kernel, task)
    uploads = Uploads(dtype)
    call: dict[str, Any] = {
        "q": uploads.view(layouts.strided_rows(bits.q, task.q_padding, rng)),
        "cu_q_len": ints(batch.cu_q_len),
        "cu_k_len": ints(batch.cu_k_len),
    }
    if batch.finished:
        call["finished"] = torch.tensor(batch.finished, device=DEVICE)
    if batch.sinks:
        call["sinks"] = torch.tensor(batch.sinks, dtype=torch.float32, device=DEVICE)
    gone = layouts.first_keys(batch)
    call |= cache_call(kernel.config, task, bits.k, bits.v, rng, uploads, gone)
    q, k, v = (from_bits(values, dtype, DEVICE) for values in bits)
    return Problem(kernel, batch, q, k, v, call, uploads)


def problem_alone(problem: Problem, b: int) -> Problem:
    """One sequence of a problem, as a batch of its own over the same memory."""
    batch = problem.batch
    rows, keys = rows_of(batch.cu_q_len)[b], rows_of(batch.cu_k_len)[b]
    one = replace(batch, q_lens=(batch.q_lens[b],), k_lens=(batch.k_lens[b],), finished=())
    call = problem.call | {
        "q": problem.call["q"][rows],
        "cu_q_len": ints(one.cu_q_len),
        "cu_k_len": ints(one.cu_k_len),
    }
    if "block_table" in call:
        call["block_table"] = call["block_table"][b : b + 1].contiguous()
    elif "block_ptrs" in call:
        blocks = call["cu_block_nums"]
        call["block_ptrs"] = call["block_ptrs"][int(blocks[b]) :].clone()
        call["cu_block_nums"] = (blocks[b : b + 2] - blocks[b]).contiguous()
    else:
        call |= {"k": call["k"][keys.start :], "v": call["v"][keys.start :]}
    logical = problem.q[rows], problem.k[keys], problem.v[keys]
    return Problem(problem.kernel, one, *logical, call, problem.uploads)


def problem_earlier(problem: Problem, k_lens: Sequence[int]) -> Problem:
    """A problem when its sequences had fewer keys, over the same memory: the caches of blocks keep
    each key where it is."""
    keys = zip(rows_of(problem.batch.cu_k_len), k_lens, strict=True)
    own = [slice(rows.start, rows.start + k_len) for rows, k_len in keys]
    k, v = (torch.cat([values[rows] for rows in own]) for values in (problem.k, problem.v))
    batch = replace(problem.batch, k_lens=tuple(k_lens))
    call = problem.call | {"cu_k_len": ints(batch.cu_k_len)}
    return Problem(problem.kernel, batch, problem.q, k, v, call, problem.uploads)


def rows_of(cumulated: Ints) -> list[slice]:
    """The rows of each sequence."""
    return [slice(int(a), int(b)) for a, b in pairwise(cumulated)]


def bounds(batch: Batch, slack: int = 0) -> dict[str, int]:
    """max_q_len and max_k_len of a batch, `slack` above the longest."""
    return {"max_q_len": max(batch.q_lens) + slack, "max_k_len": max(batch.k_lens) + slack}


def launch(problem: Problem, attn: Attention, **arguments: Any) -> Output:
    """One call into a fresh output and a workspace of NaN; `arguments` replace the problem's."""
    arguments = problem.call | {"return_lse": False} | arguments
    output = arguments.pop("output", None) or fresh_output(problem)
    plan = plan_of(problem, attn, arguments)
    if plan.workspace_bytes:
        arguments.setdefault("workspace", poisoned_workspace(plan.workspace_bytes))
    attn(**arguments, out=output.out, lse=output.lse)
    return output


def everything_given(problem: Problem, attn: Attention, most: dict[str, int]) -> dict[str, Any]:
    """All arguments of a call within bounds, output and workspace included."""
    plan = plan_of(problem, attn, problem.call | most)
    output = fresh_output(problem)
    given = problem.call | most | {"out": output.out, "lse": output.lse}
    if plan.workspace_bytes:
        given["workspace"] = poisoned_workspace(plan.workspace_bytes)
    return given


def plan_of(problem: Problem, attn: Attention, arguments: dict[str, Any]) -> Plan:
    """How the runtime plans a call."""
    batch = problem.batch
    return attn.plan(
        token_num=arguments["q"].shape[0],
        batch_size=len(batch.q_lens),
        max_q_len=arguments["max_q_len"],
        max_k_len=arguments["max_k_len"],
    )


def fresh_output(problem: Problem) -> Output:
    """out and lse that hold OUT_BEFORE."""
    heads, rows = problem.batch.num_heads, problem.call["q"].shape[0]
    shape = (rows, heads, problem.batch.head_dim_v)
    out = torch.full(shape, OUT_BEFORE, dtype=torch.int16, device=DEVICE)
    lse = torch.full((heads, 2 * rows), OUT_BEFORE, dtype=torch.int16, device=DEVICE)
    return Output(out.view(DTYPES[problem.dtype]), lse.view(torch.float32))


def poisoned_workspace(size: int) -> torch.Tensor:
    """`size` bytes of NaN."""
    return torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)


def verdict(problem: Problem, output: Output) -> list[str]:
    """What is wrong with an output: inaccurate rows, and rows that should have been left alone."""
    batch = problem.batch
    exact = attention(batch, problem.q, problem.k, problem.v)
    rounded = attention_at_input_precision(batch, problem.q, problem.k, problem.v)
    rows = slice(0, batch.token_num)
    got = TorchResult(output.out[rows], output.lse[:, rows])
    limit = lse_limit(batch, problem.q, problem.k)
    found = complaints(batch, problem.dtype, got, exact, rounded, limit)
    before = fresh_output(problem)
    live = torch.zeros(len(output.out), dtype=torch.bool, device=DEVICE)
    live[rows] = torch.from_numpy(batch.live_rows()).to(DEVICE)
    if not same_bits(output.out[~live], before.out[~live]):
        found.append("out: rows of a finished sequence, or of none, were written")
    if not same_bits(output.lse[:, ~live], before.lse[:, ~live]):
        found.append("lse: rows of a finished sequence, or of none, were written")
    return found


def difference(what: str, one: Output, other: Output) -> list[str]:
    """A complaint when two outputs differ in any bit."""
    return [
        f"{what}: {name} differs in {_differing(a, b)} of {a.numel()} elements"
        for name, a, b in zip(one._fields, one, other, strict=True)
        if not same_bits(a, b)
    ]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one type hold the same bits, NaN included."""
    return _differing(a, b) == 0


def assert_neighbours_stay(kernel: Kernel, batch: Batch) -> None:
    """NaN in the queries of the second of three sequences changes no bit of the others."""
    split = SplitPolicy.fixed(3)
    problem = problem_of(kernel, Task(batch, split=split))
    attn = attention_for(kernel.config, batch, split)
    first, second, third = rows_of(batch.cu_q_len)
    before = launch(problem, attn, **bounds(batch))
    problem.call["q"][second] = float("nan")
    after = launch(problem, attn, **bounds(batch))
    for rows in (first, third):
        assert same_bits(before.out[rows], after.out[rows])
        assert same_bits(before.lse[:, rows], after.lse[:, rows])


def assert_bits_are_those_alone(
    problem: Problem, attn: Attention, *, slack: int, sequences: int | None = None
) -> None:
    """The first `sequences` (all, if not said) have the bits in the batch, under bounds that are
    `slack` above the longest, that each has in a call of its own."""
    together = launch(problem, attn, **bounds(problem.batch, slack))
    found = []
    for b, rows in enumerate(rows_of(problem.batch.cu_q_len)[:sequences]):
        alone = problem_alone(problem, b)
        got = launch(alone, attn, **bounds(alone.batch))
        expected = Output(together.out[rows], together.lse[:, rows])
        found += difference(f"sequence {b} alone", got, expected)
    assert not found, "\n".join(found)


def assert_tasks_pass(
    kernel: Kernel, tasks: Iterable[Task], check: Callable[[Kernel, Task], list[str]]
) -> None:
    """Fails with what `check` complains of, a few lines of the first tasks it does so."""
    failures: list[str] = []
    for index, task in enumerate(tasks):
        found = check(kernel, task)
        if found:
            failures.append("\n    ".join([f"task {index}: {task}", *found[:MOST_LINES]]))
    if failures:
        shown = "\n".join(failures[:MOST_LINES])
        pytest.fail(f"{len(failures)} tasks of {kernel.config.name}, first:\n{shown}", False)


def ints(values: Any) -> torch.Tensor:
    """int32 on the device."""
    return torch.as_tensor(np.asarray(values, np.int32), device=DEVICE)


def _differing(a: torch.Tensor, b: torch.Tensor) -> int:
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return int((a.contiguous().view(kind) != b.contiguous().view(kind)).sum().item())


def cache_call(
    config: AttentionConfig,
    task: Task,
    k: Bits,
    v: Bits,
    rng: np.random.Generator,
    uploads: Uploads,
    first_keys: Sequence[int] = (),
) -> dict[str, Any]:
    """The arguments that describe the cache, which has no keys in front of `first_keys`."""
    if config.cache is Cache.LINEAR:
        gone = layouts.keys_gone(task.batch, first_keys)
        linear = layouts.linear_cache(k, v, task.linear_style, rng, gone)
        return {
            "k": uploads.view(linear.k),
            "v": uploads.view(linear.v),
        }
    if config.cache is Cache.PAGED:
        paged = layouts.paged_cache(
            task.batch, k, v, task.block_len, task.paged_style, rng, first_keys
        )
        return {
            "k": uploads.view(paged.k),
            "v": uploads.view(paged.v),
            "block_table": ints(paged.block_table),
        }
    block = layouts.block_cache(task.batch, k, v, task.block_len, rng, first_keys=first_keys)
    address = uploads.buffer(block.buffer).data_ptr()
    return {
        "block_ptrs": torch.from_numpy(block.block_ptrs(address)).to(DEVICE),
        "cu_block_nums": ints(block.cu_block_nums),
        "block_len": block.block_len,
        "layer_offset": block.layer_offset,
    }
