# SPDX-License-Identifier: Apache-2.0
"""The calls of a problem through the C ABI of a vendored library, and through Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from harness import (
    Output,
    Problem,
    attention_for,
    bounds,
    fresh_output,
    launch,
    poisoned_workspace,
    problem_of,
)
from ranks import Replay, rank_problem

import c_abi
from attn_codegen.config import AttentionConfig, Cache, Dtype, Mode
from attn_runtime import ContextParallel
from attn_runtime.plan import SplitKind, SplitPolicy
from c_abi import Library, Params
from cases import Kernel, Task
from reference_torch import torch

DTYPES = {Dtype.F16: c_abi.F16, Dtype.BF16: c_abi.BF16}
CACHES = {Cache.LINEAR: 0, Cache.BLOCK: 1, Cache.PAGED: 2}
MODES = {Mode.PREFILL: c_abi.PREFILL, Mode.DECODE: c_abi.DECODE}


def c_call(problem: Problem, split: SplitPolicy, output: Output) -> Params:
    """The call of a problem for C."""
    config, batch, call = problem.kernel.config, problem.batch, problem.call
    most = bounds(batch)
    given = Params(
        dtype=DTYPES[config.dtype],
        mode=MODES[config.mode],
        cache=CACHES[config.cache],
        causal=batch.causal,
        out=output.out.data_ptr(),
        lse=output.lse.data_ptr(),
        q=call["q"].data_ptr(),
        stride=call["q"].stride(0),
        cu_q_len=call["cu_q_len"].data_ptr(),
        cu_k_len=call["cu_k_len"].data_ptr(),
        finished=call["finished"].data_ptr() if "finished" in call else None,
        sinks=call["sinks"].data_ptr() if "sinks" in call else None,
        token_num=batch.token_num,
        batch_size=len(batch.q_lens),
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        size_per_head=config.head_dim,
        size_per_head_v=config.head_dim_v,
        inv_sqrt_dh=batch.softmax_scale,
        window_size=batch.window,
        stream=torch.cuda.current_stream().cuda_stream,
        max_split_k=1 if split.kind is SplitKind.OFF else split.max_split_k,
        split_cnt=split.value if split.kind is SplitKind.FIXED else 0,
        split_size=split.value if split.kind is SplitKind.FIXED_SIZE else 0,
        **most,
    )
    _fill_cache(given, config, call)
    return given


def _fill_cache(given: Params, config: AttentionConfig, call: dict[str, Any]) -> None:
    if config.cache is Cache.BLOCK:
        block = given.block_iter_params
        block.block_ptrs = call["block_ptrs"].data_ptr()
        block.cu_block_nums = call["cu_block_nums"].data_ptr()
        block.layer_offset, block.block_len = call["layer_offset"], call["block_len"]
        return
    k, v = call["k"], call["v"]
    if config.cache is Cache.LINEAR:
        rows, axes = given.linear_iter_params, ("token", "head")
        rows.token_count = k.shape[0]
    else:
        rows, axes = given.paged_iter_params, ("block", "token", "head")
        rows.block_table = call["block_table"].data_ptr()
        rows.max_blocks = call["block_table"].shape[1]
        rows.block_count, rows.block_len = k.shape[:2]
    rows.k, rows.v = k.data_ptr(), v.data_ptr()
    for name, array in (("k", k), ("v", v)):
        for axis, stride in zip(axes, array.stride(), strict=False):
            setattr(rows, f"{name}_{axis}_stride", stride)


def run_c(
    library: Library, problem: Problem, split: SplitPolicy, have: int | None = None
) -> Output:
    """The call through C into a fresh output and a workspace of NaN: of `have` bytes, or as many as
    it would like."""
    output = fresh_output(problem)
    given = c_call(problem, split, output)
    status, size = library.workspace_size(given)
    assert status == c_abi.SUCCESS, library.last_error()
    status, count = library.counter_count(given)
    assert status == c_abi.SUCCESS, library.last_error()
    counters = torch.zeros(count, dtype=torch.int32, device=output.out.device)
    given.counters = counters.data_ptr() if count else None
    size = size if have is None else have
    workspace = poisoned_workspace(size) if size else None
    address = workspace.data_ptr() if workspace is not None else None
    run = library.decode if problem.kernel.config.mode is Mode.DECODE else library.prefill
    status = run(given, address, size)
    assert status == c_abi.SUCCESS, library.last_error()
    torch.cuda.current_stream().synchronize()  # the workspace is in use until then
    assert not counters.any(), "counters reset themselves"
    return output


def c_ranks(library: Library, kernel: Kernel, task: Task, size: int, form: int) -> list[Output]:
    """What each rank of a group has at the end of its call. All run twice: the second time each
    finds what the others left the first time."""
    problem, parts = problem_of(kernel, task), dict[Any, torch.Tensor]()
    outputs: list[Output] = []
    for _ in range(2):
        outputs = []
        for rank in range(size):
            replay = Replay(size, rank, parts)
            own = rank_problem(problem, task, ContextParallel(replay))
            outputs.append(run_c_rank(library, own, task.split, replay, form))
    return outputs


def run_c_rank(
    library: Library, problem: Problem, split: SplitPolicy, replay: Replay, form: int
) -> Output:
    """The call of one rank through C, whose callback gathers."""
    output = fresh_output(problem)
    given = c_call(problem, split, output)
    given.cp_rank, given.cp_size, given.cp_form = replay.rank, replay.size, form
    if "cu_rows" in problem.call:
        given.linear_iter_params.cu_rows = problem.call["cu_rows"].data_ptr()
    _, size = library.workspace_size(given)
    _, count = library.counter_count(given)
    workspace = poisoned_workspace(size)
    counters = torch.zeros(max(count, 1), dtype=torch.int32, device=output.out.device)
    given.counters = counters.data_ptr()
    status, first, floats = library.parts(given, workspace.data_ptr())
    assert status == c_abi.SUCCESS, library.last_error()
    gather = c_abi.CALLBACK(lambda _: replay.all_gather(first, floats, given.stream or 0))
    given.cp_fn = ctypes.cast(gather, ctypes.c_void_p).value
    run = library.decode if problem.kernel.config.mode is Mode.DECODE else library.prefill
    assert run(given, workspace.data_ptr(), size) == c_abi.SUCCESS, library.last_error()
    torch.cuda.synchronize()
    return output


def run_python(problem: Problem, split: SplitPolicy, **arguments: Any) -> Output:
    """The same call through the Python runtime."""
    attn = attention_for(problem.kernel.config, problem.batch, split)
    return launch(problem, attn, **bounds(problem.batch), **arguments)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Pool:
    """A paged cache of int8 codes and pairs (scale, zero) of bf16, K and V of it, and the sequences
    in it."""

    codes: torch.Tensor  # [K and V, block, block_len, num_kv_heads, head_dim]
    pairs: torch.Tensor  # [K and V, block, block_len, num_kv_heads, 2]
    sequences: dict[str, torch.Tensor]

    def arguments(self) -> dict[str, torch.Tensor]:
        """As Python takes them."""
        k_pairs, v_pairs = self.pairs
        return self.sequences | {"k_pairs": k_pairs, "v_pairs": v_pairs}

    def params(self, rows: int, width: int, **members: Any) -> Params:
        """As C takes them, in a call of some rows."""
        lens, table = self.sequences["cu_q_len"], self.sequences["block_table"]
        heads = self.codes.shape[3]
        given = Params(
            dtype=c_abi.BF16,
            cache=CACHES[Cache.PAGED],
            kv_type=c_abi.INT8,
            cu_q_len=lens.data_ptr(),
            cu_k_len=self.sequences["cu_k_len"].data_ptr(),
            token_num=rows,
            batch_size=len(lens) - 1,
            max_q_len=rows,
            max_k_len=table.shape[1] * self.codes.shape[2],
            num_heads=heads,
            num_kv_heads=heads,
            size_per_head=width,
            stream=torch.cuda.current_stream().cuda_stream,
        )
        for name, value in members.items():
            setattr(given, name, value)
        pool = given.paged_iter_params
        pool.block_table, pool.max_blocks = table.data_ptr(), table.shape[1]
        pool.block_count, pool.block_len = self.codes.shape[1:3]
        for index, name in enumerate("kv"):
            setattr(pool, name, self.codes[index].data_ptr())
            setattr(pool, f"{name}_pairs", self.pairs[index].data_ptr())
            for part, array in (("", self.codes[index]), ("pair_", self.pairs[index])):
                for axis, stride in zip(("block", "token", "head"), array.stride(), strict=False):
                    setattr(pool, f"{name}_{part}{axis}_stride", stride)
        return given


def new_rows(k_new: torch.Tensor, v_new: torch.Tensor) -> dict[str, int]:
    """Rows [token_num, num_kv_heads, head_dim] that a call puts into a pool."""
    rows = {"k": k_new.data_ptr(), "v": v_new.data_ptr()}
    return rows | {"k_stride": k_new.stride(0), "v_stride": v_new.stride(0)}


def c_write(k_new: torch.Tensor, v_new: torch.Tensor, pool: Int8Pool) -> Params:
    """Writes bf16 rows into a pool."""
    rows = new_rows(k_new, v_new)
    return pool.params(k_new.shape[0], k_new.shape[2], mode=c_abi.WRITE, **rows)


def c_decode(
    q: torch.Tensor,
    out: torch.Tensor,
    pool: Int8Pool,
    new: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Params:
    """Decodes rows q [token_num, num_heads, head_dim] over a pool, unsplit, and appends `new` rows
    of K and V first."""
    rows = {"q": q.data_ptr(), "out": out.data_ptr(), "stride": q.stride(0)}
    rows |= {} if new is None else new_rows(*new)
    shape = {"num_heads": q.shape[1], "inv_sqrt_dh": q.shape[2] ** -0.5, "max_split_k": 1}
    return pool.params(q.shape[0], q.shape[2], mode=c_abi.DECODE, **rows, **shape)
