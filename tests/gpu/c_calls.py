# SPDX-License-Identifier: Apache-2.0
"""The calls of a problem through the C ABI of a vendored library, and through Python."""

from __future__ import annotations

from typing import Any

from harness import (
    Output,
    Problem,
    attention_for,
    bounds,
    fresh_output,
    launch,
    poisoned_workspace,
)

import c_abi
from attn_codegen.config import AttentionConfig, Cache, Dtype, Mode
from attn_runtime.plan import SplitKind, SplitPolicy
from c_abi import Library, Params
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


def run_c(library: Library, problem: Problem, split: SplitPolicy) -> Output:
    """The call through C into a fresh output and a workspace of NaN."""
    output = fresh_output(problem)
    given = c_call(problem, split, output)
    status, size = library.workspace_size(given)
    assert status == c_abi.SUCCESS, library.last_error()
    status, count = library.counter_count(given)
    assert status == c_abi.SUCCESS, library.last_error()
    # One for the Hopper kernels of prefill, which are not asked.
    counters = torch.zeros(max(1, count), dtype=torch.int32, device=output.out.device)
    given.counters = counters.data_ptr()
    workspace = poisoned_workspace(size) if size else None
    address = workspace.data_ptr() if workspace is not None else None
    run = library.decode if problem.kernel.config.mode is Mode.DECODE else library.prefill
    status = run(given, address, size)
    assert status == c_abi.SUCCESS, library.last_error()
    torch.cuda.current_stream().synchronize()  # the workspace is in use until then
    assert not counters.any(), "counters reset themselves"
    return output


def run_python(problem: Problem, split: SplitPolicy) -> Output:
    """The same call through the Python runtime."""
    attn = attention_for(problem.kernel.config, problem.batch, split)
    return launch(problem, attn, **bounds(problem.batch))


def c_write(
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    codes: torch.Tensor,
    pairs: torch.Tensor,
    call: dict[str, torch.Tensor],
) -> Params:
    """Writes bf16 rows [token_num, num_kv_heads, head_dim] into pools of int8 codes
    [K and V, block, block_len, num_kv_heads, head_dim] and pairs (scale, zero)."""
    tokens, heads, dim = k_new.shape
    given = Params(
        dtype=c_abi.BF16,
        mode=c_abi.WRITE,
        cache=CACHES[Cache.PAGED],
        kv_type=c_abi.INT8,
        k=k_new.data_ptr(),
        v=v_new.data_ptr(),
        k_stride=k_new.stride(0),
        v_stride=v_new.stride(0),
        cu_q_len=call["cu_q_len"].data_ptr(),
        cu_k_len=call["cu_k_len"].data_ptr(),
        token_num=tokens,
        batch_size=len(call["cu_q_len"]) - 1,
        max_q_len=tokens,
        max_k_len=codes.shape[1] * codes.shape[2],
        num_heads=heads,
        num_kv_heads=heads,
        size_per_head=dim,
        stream=torch.cuda.current_stream().cuda_stream,
    )
    rows = given.paged_iter_params
    rows.block_table = call["block_table"].data_ptr()
    rows.max_blocks = call["block_table"].shape[1]
    rows.block_count, rows.block_len = codes.shape[1:3]
    for index, name in enumerate("kv"):
        setattr(rows, name, codes[index].data_ptr())
        setattr(rows, f"{name}_pairs", pairs[index].data_ptr())
        for part, array in (("", codes[index]), ("pair_", pairs[index])):
            for axis, stride in zip(("block", "token", "head"), array.stride(), strict=False):
                setattr(rows, f"{name}_{part}{axis}_stride", stride)
    return given
