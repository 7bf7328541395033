# SPDX-License-Identifier: Apache-2.0
"""The door for cache writers: rows of K and V of new tokens into a cache of any kind."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from attn_codegen import struct_layout
from attn_codegen.config import Cache, Dtype, KvDtype, Mode
from attn_runtime import driver
from attn_runtime.arrays import adapter_of
from attn_runtime.call_buffer import CallBuffer
from attn_runtime.call_memory import CallMemories
from attn_runtime.checks import need_int
from attn_runtime.context_parallel import ContextParallel, ranks_of
from attn_runtime.driver import Context
from attn_runtime.given import Given, context_of, context_of_first, given_of, views_of
from attn_runtime.kernel import Kernel, load
from attn_runtime.kv_cache import Values
from attn_runtime.settings import config_of, device_ordinal, refuse_unsupported
from attn_runtime.streams import stream_handle
from attn_runtime.write_call import ARRAYS, check_write, places, write_grid

_STRUCT: Final = "AttentionParams"

WAITING_PTX: Final = 90
"""A writer of this PTX and later waits for the launch before it by itself (attn/launch.h)."""


class CacheWriter:
    """Writes rows of K and V of new tokens into a linear, block or paged cache, quantised where
    `kv_dtype` says so.

    x is read back as code * scale + zero of its row (int8, int4) or code * scale of its head
    (e4m3); attn/kv_type.h has the layout. Only rows of new tokens are written; the same call twice
    leaves the same bits. `device` is the GPU that `prepare` uses; calls run where k_new is. With
    `context_parallel`, every rank is given all new tokens and writes those that it has; a cache
    that grows token by token is `interleaved`, since other shardings move keys when a sequence
    becomes longer.

    Raises ConfigError for a combination that no kernel serves. Safe to call from several threads.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        head_dim: int,
        head_dim_v: int | None = None,
        dtype: Dtype | str = Dtype.BF16,
        kv_dtype: KvDtype | str = KvDtype.SAME,
        cache: Cache | str = Cache.PAGED,
        device: Any = None,
        context_parallel: ContextParallel | None = None,
    ) -> None:
        self.config: Final = config_of(
            mode=Mode.WRITE,
            dtype=dtype,
            kv_dtype=kv_dtype,
            head_dim=head_dim,
            head_dim_v=head_dim if head_dim_v is None else head_dim_v,
            cache=cache,
        )
        refuse_unsupported(self.config)
        self.num_kv_heads: Final = need_int("num_kv_heads", num_kv_heads, least=1)
        self.device: Final = device_ordinal(device)
        self._ranks = ranks_of(context_parallel)
        self._memories: Final = CallMemories[WriteCall]()

    def __repr__(self) -> str:
        return f"<CacheWriter {self.config.name}, {self.num_kv_heads} KV heads>"

    def prepare(self) -> None:
        """Compile and load the kernel, so that no call and no graph capture has to. Raises
        ToolchainError, CompileError, DriverError or DeviceError."""
        ordinal = driver.current_device() if self.device is None else self.device
        load(self.config, driver.context_of_device(ordinal))

    def __call__(
        self,
        k_new: Any,
        v_new: Any,
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
        finished: Any = None,
        cu_rows: Any = None,
        stream: Any = None,
    ) -> None:
        """Enqueue one call.

        k_new [token_num, num_kv_heads, head_dim], v_new [token_num, num_kv_heads, head_dim_v]: new
        tokens of all sequences, cu_q_len int32 [batch_size + 1] their sums. cu_k_len int32
        [batch_size + 1] are sums of the lengths with them: new token i of a sequence becomes its
        key k_len - q_len + i. finished bool [batch_size]: sequences to leave alone.

        The cache is given as to Attention. A quantised one has uint8 k and v (int4: half as many
        bytes as head_dim); int8 and int4 have k_pairs and v_pairs beside them, [..., 2] of dtype
        (linear: [tokens, num_kv_heads, 2], paged: [block_count, block_len, num_kv_heads, 2]); e4m3
        has k_scale and v_scale, float32, one or [num_kv_heads], 1 where left out.

        With context_parallel, lengths are those of whole sequences, the cache is this rank's, and a
        linear one takes cu_rows int32 [batch_size + 1]: sums of the keys that this rank has then.

        Raises ArgumentError, which names the argument; then nothing was launched.
        """
        arrays = (
            *(k_new, v_new, k, v, k_pairs, v_pairs, k_scale, v_scale),
            *(block_table, block_ptrs, cu_block_nums, cu_q_len, cu_k_len, finished, cu_rows),
        )  # in the order of ARRAYS
        adapter = adapter_of(k_new, "k_new")
        handle = adapter.current_stream(k_new) if stream is None else stream_handle(stream)
        keys, addresses, owners = adapter.read_all(arrays, ARRAYS, handle)
        context = None if adapter.knows_device else self._context_of(addresses[0])
        key = (keys, (block_len, layer_offset), context)
        memory = self._memories.own()
        if key == memory.last_key:
            call = memory.last_call
        else:
            call = memory.recall(key) or self._prepared(
                given_of(ARRAYS, arrays, keys, addresses), block_len, layer_offset, context
            )
            memory.keep(key, call)
        if call.context.is_current():
            call.run(addresses, handle)
        else:
            with call.context:
                call.run(addresses, handle)
        del owners  # what exporters lent is needed until here

    def _context_of(self, pointer: int) -> Context:
        if pointer:
            return context_of("k_new", pointer)
        ordinal = driver.current_device() if self.device is None else self.device
        return driver.context_of_device(ordinal)

    def _prepared(
        self,
        given: Sequence[Given],
        block_len: int | None,
        layer_offset: int | None,
        context: Context | None,
    ) -> WriteCall:
        """The first call of a kind, on the device of k_new."""
        if context is None:
            context = context_of_first(given)
        views = views_of(given, ARRAYS, context)
        ordinal = context.device.ordinal
        values = check_write(
            self.config, self.num_kv_heads, views, block_len, layer_offset, ordinal, self._ranks
        )
        return WriteCall(context, load(self.config, context), values)


class WriteCall:
    """A checked call that lacks its addresses. Belongs to one thread."""

    def __init__(self, context: Context, kernel: Kernel, values: Values) -> None:
        self.context = context
        numbers = (values.get(name, 0) for name in struct_layout.field_names(_STRUCT))
        packed = struct.pack(struct_layout.struct_format(_STRUCT), *numbers)
        self._buffer = CallBuffer(packed, ARRAYS, places(kernel.config))
        tile, rows = kernel.tiling, int(values["token_num"]) * int(values["num_kv_heads"])
        self._has_rows = rows > 0 and values["batch_size"] > 0
        grid = write_grid(rows, tile.cta_q, context.device.sm_count * kernel.limits.ctas_per_sm)
        self._start = kernel.function.launcher(
            *(grid, tile.threads, tile.shared_bytes, self._buffer.parameters),
            may_begin_early=kernel.function.ptx_version >= WAITING_PTX,
        )

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """Launch on a stream, by its handle; the context must be current. The addresses are those
        of ARRAYS, 0 for none. Raises ArgumentError for one that is not aligned."""
        self._buffer.write(addresses)
        if self._has_rows:
            self._start(stream)
