# SPDX-License-Identifier: Apache-2.0
"""The door for users: attention over the arrays of any library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, KvDtype, Mask, Mode
from attn_codegen.tile import key_bytes
from attn_codegen.tuning import Tuning
from attn_runtime import driver
from attn_runtime.arguments import Numbers, default_max_q_len
from attn_runtime.arrays import PYCUDA, adapter_of
from attn_runtime.call_memory import CallMemories
from attn_runtime.checks import need_int
from attn_runtime.context_parallel import ContextParallel, ranks_of
from attn_runtime.driver import Context
from attn_runtime.errors import ArgumentError
from attn_runtime.given import Given, context_of, context_of_first, given_of
from attn_runtime.kernels import (
    candidates,
    kernels_for,
    load_kernels,
    many_rows_candidates,
    reserve_counters,
)
from attn_runtime.launch import ARRAYS
from attn_runtime.plan import Plan, Problem, SplitPolicy
from attn_runtime.prepared import Prepared, plan_call, prepare_call
from attn_runtime.settings import Settings, device_ordinal, make_settings, tile_of, with_tile
from attn_runtime.streams import is_pycuda_stream, stream_handle

_OUT, _LSE, _WORKSPACE = (ARRAYS.index(name) for name in ("out", "lse", "workspace"))


class Attention:
    """softmax(scale q k^T) v over a batch of sequences of any lengths.

    num_heads query heads of head_dim elements share num_kv_heads KV heads (as many, where left
    out), whose values have head_dim_v. dtype, f16 or bf16, is that of q and of the output. cache is
    where K and V lie: linear, block or paged; mask is causal (query i of n sees key j of m iff
    j <= i + m - n) or full. Words may be given as enums of attn_codegen.config, too.
    window_size 0 is none; w: a query at position p sees the keys above p - w (and, with mask full,
    below p + w). Keys that no query sees need not be there: rows of any cache may hold anything,
    and entries of the block table may be wild. softmax_scale is 1 / sqrt(head_dim) unless given.
    split says how the keys of a row are cut: "heuristic", "off" or a SplitPolicy. `device` is the
    GPU that `prepare` and `plan` use; calls run where q is. `arch` is the kernel family; left out,
    it is the fastest that the device and the combination have. With `context_parallel`, the keys of
    each sequence are spread over the ranks of a group: every rank makes the same calls, with its
    own part of the cache.
    `tile` is the word of the tile that every call takes, such as t128x128, or "default"; left out,
    the plan picks one for each call, by the bounds of lengths and by what tiles cost: as measured
    on an H200, or as the file `tuning` of `attn-codegen tune` says.
    `mode` decode is for one to eight query tokens a sequence, causal among themselves; on Hopper, a
    prefill kernel takes a call with many rows of a KV head (attn_runtime.many_rows).
    `kernels` is a folder that `attn-codegen build --export` made: its kernels are taken as they are
    and nothing is compiled; left out, it is $ATTN_KERNEL_DIR, and without that the cubin cache.
    `kv_dtype` is the element type of the cache: same (that of q), int8, int4 or e4m3, as
    CacheWriter writes it.

    Raises ConfigError for a combination that no kernel serves (why, and what works), ArgumentError
    for a number out of range. Safe to call from several threads.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_kv_heads: int | None = None,
        head_dim_v: int | None = None,
        dtype: Dtype | str = Dtype.BF16,
        cache: Cache | str = Cache.PAGED,
        mask: Mask | str = Mask.CAUSAL,
        window_size: int = 0,
        softmax_scale: float | None = None,
        split: SplitPolicy | str = "heuristic",
        device: Any = None,
        arch: Arch | str | None = None,
        context_parallel: ContextParallel | None = None,
        tile: str | None = None,
        tuning: Tuning | Path | str | None = None,
        mode: Mode | str = Mode.PREFILL,
        kernels: str | os.PathLike[str] | None = None,
        kv_dtype: KvDtype | str = KvDtype.SAME,
    ) -> None:
        self.settings: Final[Settings] = make_settings(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            dtype=dtype,
            cache=cache,
            mask=mask,
            window_size=window_size,
            softmax_scale=softmax_scale,
            split=split,
            arch=arch,
            ranks=ranks_of(context_parallel),
            tile=tile,
            tuning=tuning,
            mode=mode,
            kernels=kernels,
            kv_dtype=kv_dtype,
        )
        self.context_parallel: Final = context_parallel
        self.device: Final = device_ordinal(device)
        self._memories: Final = CallMemories[Prepared]()

    def __repr__(self) -> str:
        heads, kv_heads = self.settings.num_heads, self.settings.num_kv_heads
        return f"<Attention {self.config.name}, {heads} heads, {kv_heads} KV heads>"

    @property
    def config(self) -> AttentionConfig:
        """The configuration, in the least kernel family that has it."""
        return self.settings.config

    def prepare(self, tiles: Iterable[str] | None = None) -> None:
        """Compile and load the kernels and the reduction, so that no call and no graph capture has
        to: one kernel for each tile that a plan may pick, or for those given by their words.

        Raises ConfigError for a tile that there is not, ToolchainError, CompileError, DriverError
        or DeviceError.
        """
        settings, context = self.settings, self._own_context()
        chosen = candidates(settings, context)
        if tiles is not None:
            chosen = tuple(with_tile(chosen[0], tile_of(word) or "") for word in tiles)
        for config in chosen:
            load_kernels(config, context, settings.kernels)
            if config.mode is Mode.DECODE:
                reserve_counters(settings, config, context)
        if tiles is None:
            for config in many_rows_candidates(settings, context):
                load_kernels(config, context, settings.kernels)

    def plan(
        self,
        *,
        token_num: int,
        batch_size: int,
        max_k_len: int,
        max_q_len: int | None = None,
    ) -> Plan:
        """How a call of these bounds is cut on the device; compiles and loads what it needs. Of a
        call in rounds of heads (ContextParallel), it is the plan of one, with the workspace of all.
        """
        settings, context = self.settings, self._own_context()
        longest = default_max_q_len(settings, token_num) if max_q_len is None else max_q_len
        problem = Problem(
            token_num=need_int("token_num", token_num),
            batch_size=need_int("batch_size", batch_size),
            max_q_len=need_int("max_q_len", longest),
            max_k_len=need_int("max_k_len", max_k_len),
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim_v=settings.config.head_dim_v,
            window_size=settings.window_size,
            causal=settings.config.mask is Mask.CAUSAL,
            key_bytes=key_bytes(settings.config),
            **settings.ranks.fields(),
        )
        return plan_call(settings, problem, kernels_for(settings, problem, context), context).plan

    def workspace_size(
        self,
        *,
        token_num: int,
        batch_size: int,
        max_k_len: int,
        max_q_len: int | None = None,
    ) -> int:
        """Bytes of workspace that a call of exactly these bounds takes; 0 when it is not split.

        Fewer tokens may be split more. A bound for every call of up to token_num tokens is that of
        a policy with max_split_k: max_split_k * token_num * num_heads * (head_dim_v + 2) * 4 + 256.
        """
        return self.plan(
            token_num=token_num, batch_size=batch_size, max_q_len=max_q_len, max_k_len=max_k_len
        ).workspace_bytes

    def __call__(
        self,
        q: Any,
        k: Any = None,
        v: Any = None,
        *,
        cu_q_len: Any,
        cu_k_len: Any,
        k_pairs: Any = None,
        v_pairs: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        block_table: Any = None,
        block_ptrs: Any = None,
        cu_block_nums: Any = None,
        block_len: int | None = None,
        layer_offset: int | None = None,
        max_q_len: int | None = None,
        max_k_len: int | None = None,
        finished: Any = None,
        cu_rows: Any = None,
        offset_q: Any = None,
        sinks: Any = None,
        k_new: Any = None,
        v_new: Any = None,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        workspace: Any = None,
        stream: Any = None,
    ) -> Any:
        """Enqueue one call; returns out, or (out, lse) with return_lse.

        q [token_num, num_heads, head_dim], out [token_num, num_heads, head_dim_v],
        lse float32 [num_heads, token_num], natural log; cu_q_len and cu_k_len int32
        [batch_size + 1], sums of lengths; finished bool [batch_size]: rows to leave alone; sinks
        float32 [num_heads], of mode decode: a logit per head that only adds to the denominator.
        linear cache: k, v [tokens, num_kv_heads, head_dim or head_dim_v].
        paged cache: k, v [block_count, block_len, num_kv_heads, head_dim or head_dim_v],
        block_table int32 [batch_size, max_blocks].
        block cache: block_ptrs int64 [block_count], addresses; cu_block_nums int32
        [batch_size + 1]; block_len tokens; layer_offset bytes.

        A quantised cache has uint8 k and v (int4: half as many bytes as head_dim). int8 and int4
        have k_pairs and v_pairs beside them, (scale, zero) of each row: [tokens, num_kv_heads, 2]
        or [block_count, block_len, num_kv_heads, 2] of dtype. e4m3 has k_scale and v_scale,
        float32, one or [num_kv_heads], 1 where left out; prefill on bf16 takes v_scale, and
        k_scale times the softmax scale, below 128.

        k_new and v_new [token_num, num_kv_heads, head_dim], of mode decode: rows of the tokens of
        q, which the call writes into the cache before it reads it, as a CacheWriter would; they are
        the last keys of their sequences, and cu_k_len counts them. Bits are those of a CacheWriter
        and then a decode kernel: a call of many rows without k_new may run on a prefill kernel, and
        round otherwise.

        offset_q int32 [batch_size]: position of each sequence's first query, where the queries are
        not its last tokens. With context_parallel, lengths are those of whole sequences, K and V
        are this rank's, max_k_len must be given, and a linear cache takes cu_rows int32
        [batch_size + 1]: sums of the keys that this rank has.

        max_q_len and max_k_len are upper bounds of the lengths; left out, they are what the arrays
        have room for, but 8 query tokens a sequence in mode decode. Close bounds are faster: they
        choose the grid, the tile and the splits, and short sequences feel what is left empty (16 of
        256 tokens and 8 heads of 128 took 15.5 us without bounds on an H200, and 11.3 us with the
        lengths themselves; of 4096 tokens, there was no difference). Results that are not given are
        allocated by q's library where that is torch, and else by PyCUDA (bf16 as uint16 that holds
        its bits). With `out` and `workspace` (bytes: workspace_size, aligned to 256) given, nothing
        is allocated, and nothing ever waits; in a smaller workspace, the heuristic splits less.
        `stream` is an int or a stream of torch, PyCUDA or CuPy; left out, it is that of q: torch's
        current stream, the one a CUDA array interface names, or the default.

        Raises ArgumentError, which names the argument, or PlanError; then nothing was launched.
        """
        arrays = (
            *(q, k, v, k_pairs, v_pairs, k_scale, v_scale, block_table, block_ptrs, cu_block_nums),
            *(cu_q_len, cu_k_len, finished, sinks, cu_rows, offset_q, k_new, v_new),
            *(out, lse, workspace),
        )  # in the order of ARRAYS
        adapter = adapter_of(q, "q")
        handle = adapter.current_stream(q) if stream is None else stream_handle(stream)
        keys, addresses, owners = adapter.read_all(arrays, ARRAYS, handle)
        context = None if adapter.knows_device else self._context_of(addresses[0])
        numbers = (max_q_len, max_k_len, block_len, layer_offset)
        key = (keys, numbers, context)
        memory = self._memories.own()
        if key == memory.last_key:
            call = memory.last_call
        else:
            call = memory.recall(key) or self._prepared(
                given_of(ARRAYS, arrays, keys, addresses), Numbers(*numbers), context
            )
            memory.keep(key, call)
        if out is None:
            out, addresses[_OUT] = adapter.empty(
                q, call.context, handle, call.out_shape, call.out_dtype
            )
        if return_lse and lse is None:
            lse, addresses[_LSE] = adapter.empty(q, call.context, handle, call.lse_shape, "f32")
        if workspace is None and call.plan.workspace_bytes:
            workspace, addresses[_WORKSPACE] = adapter.empty(
                q, call.context, handle, (call.plan.workspace_bytes,), "u8"
            )
        own = adapter is PYCUDA if stream is None else is_pycuda_stream(stream)
        if call.context.is_current():
            _run(call, addresses, own, stream, handle)
        else:
            with call.context:
                _run(call, addresses, own, stream, handle)
        del owners  # what exporters lent is needed until here
        return (out, lse) if return_lse else out

    def _own_context(self) -> Context:
        ordinal = driver.current_device() if self.device is None else self.device
        return driver.context_of_device(ordinal)

    def _context_of(self, pointer: int) -> Context:
        """The context of a q whose library does not say; an empty one may run anywhere."""
        return context_of("q", pointer) if pointer else self._own_context()

    def _prepared(
        self, given: Sequence[Given], numbers: Numbers, context: Context | None
    ) -> Prepared:
        """The first call of a kind, on the device of q."""
        if context is None:
            context = context_of_first(given)
        if self.device not in (None, context.device.ordinal):
            raise ArgumentError(
                "q",
                f"q is in the memory of GPU {context.device.ordinal}, and this Attention was built "
                f"for GPU {self.device}: move q, or build an Attention without device=",
            )
        exchange = self.context_parallel if self.settings.ranks.exchanges else None
        return prepare_call(self.settings, given, numbers, context, exchange)


def _run(call: Prepared, addresses: list[int], own: bool, stream: Any, handle: int) -> None:
    if own:
        call.launch.run_on_own(addresses, stream)
    else:
        call.launch.run(addresses, handle)
