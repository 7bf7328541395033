# SPDX-License-Identifier: Apache-2.0
"""A paged KV cache of one layer, for those who have none: pools, block tables, and the writer.

A convenience, not a manager: it allocates all blocks at the start, hands them out in order, and
takes them back when no sequence has them any more. It never moves or evicts a block.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from attn_codegen.config import Cache, Dtype, KvDtype
from attn_codegen.prose import counted
from attn_runtime import driver
from attn_runtime.array_view import NUMPY_NAMES, TORCH_NAMES
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.checks import need_int
from attn_runtime.errors import ArgumentError
from attn_runtime.kv_cache import row_extent
from attn_runtime.settings import device_ordinal


class KVCache:
    """Blocks of K and V for some sequences, in torch's memory where torch is imported, and else in
    PyCUDA's.

    Rows of a block lie head by head, and so do the (scale, zero) pairs: narrow rows of neighbouring
    heads then share no memory transaction. `k_scale` and `v_scale` are those of an e4m3 cache.
    `arguments(sequences)` are what Attention and CacheWriter take to find the cache.

    block_count blocks of block_len tokens; dtype is that of new rows, kv_dtype what the cache keeps
    of them; k_scale and v_scale float32 on the device, one or [num_kv_heads]; device an ordinal or
    what torch calls one. Raises ConfigError for a cache that no writer serves, ArgumentError for a
    number out of range, and what the library raises that allocates.
    """

    def __init__(
        self,
        *,
        block_count: int,
        num_kv_heads: int,
        head_dim: int,
        block_len: int = 64,
        dtype: Dtype | str = Dtype.BF16,
        kv_dtype: KvDtype | str = KvDtype.SAME,
        k_scale: Any = None,
        v_scale: Any = None,
        device: Any = None,
    ) -> None:
        self.writer: Final = CacheWriter(
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            kv_dtype=kv_dtype,
            cache=Cache.PAGED,
            device=device,
        )
        self.block_count: Final = need_int("block_count", block_count, least=1)
        self.block_len: Final = need_int("block_len", block_len, least=1)
        ordinal = device_ordinal(device)
        self._memory: _TorchMemory | _OwnMemory = (
            _TorchMemory(ordinal) if "torch" in sys.modules else _OwnMemory(ordinal)
        )
        config, heads = self.writer.config, self.writer.num_kv_heads
        element = config.dtype.value if config.kv_dtype is KvDtype.SAME else "u8"
        shape = (self.block_count, heads, self.block_len)
        row = (*shape, row_extent(config, config.head_dim))
        arrays: dict[str, Any] = {name: self._memory.pool(row, element) for name in ("k", "v")}
        if config.kv_dtype.has_pairs:
            for name in ("k_pairs", "v_pairs"):
                arrays[name] = self._memory.pool((*shape, 2), config.dtype.value)
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None:
                arrays[name] = scale
        self.pools: Final = arrays
        self._free = list(range(self.block_count))[::-1]
        self._users = [0] * self.block_count
        self._blocks: dict[Any, list[int]] = {}
        self._lengths: dict[Any, int] = {}

    def __repr__(self) -> str:
        free, cache = len(self._free), self.writer.config
        return f"<KVCache {cache.name}, {free} of {self.block_count} blocks free>"

    def length(self, sequence: Any) -> int:
        """Tokens of a sequence that is in the cache; 0 for others."""
        return self._lengths.get(sequence, 0)

    def append(
        self,
        sequences: Sequence[Any],
        k_new: Any,
        v_new: Any,
        q_lens: Sequence[int],
        *,
        write: bool = True,
        **rest: Any,
    ) -> dict[str, Any]:
        """Write new tokens of sequences, which any hashable values name, behind those they have.

        k_new, v_new [token_num, num_kv_heads, head_dim], q_lens tokens of each sequence; `rest`
        goes to the writer (stream). Returns the arguments of an Attention call that sees them: the
        cache, cu_q_len, cu_k_len, max_q_len and max_k_len. With write=False, k_new and v_new are
        among them: that call, of mode decode, then writes the rows itself.

        Raises ArgumentError where blocks run out; then nothing was written.
        """
        _check_sequences(sequences, q_lens)
        self._reserve(sequences, q_lens)
        k_lens = [
            self.length(sequence) + count for sequence, count in zip(sequences, q_lens, strict=True)
        ]
        lengths = {
            "cu_q_len": self._memory.ints([0, *accumulate(q_lens)]),
            "cu_k_len": self._memory.ints([0, *accumulate(k_lens)]),
        }
        cache = self.arguments(sequences)
        bounds = {"max_q_len": max(q_lens, default=0), "max_k_len": max(k_lens, default=0)}
        if write:
            self.writer(k_new, v_new, **cache, **lengths, **rest)
        self._lengths |= zip(sequences, k_lens, strict=True)  # known once nothing can be refused
        appended = {} if write else {"k_new": k_new, "v_new": v_new}
        return cache | lengths | bounds | appended

    def arguments(self, sequences: Sequence[Any]) -> dict[str, Any]:
        """k, v, their pairs or scales, and the block table of some sequences."""
        rows = [self._blocks.get(sequence, []) for sequence in sequences]
        width = max((len(row) for row in rows), default=0) or 1
        table = [block for row in rows for block in (*row, *[0] * (width - len(row)))]
        return self.pools | {"block_table": self._memory.ints(table, (len(rows), width))}

    def share_prefix(self, parent: Any, child: Any, tokens: int | None = None) -> int:
        """Begin a sequence with the whole blocks of another's first tokens (all that it has, where
        left out), which neither writes again. Returns how many tokens the new one then has: append
        the rest.

        Raises ArgumentError for a child that is in the cache, and for more tokens than there are.
        """
        length = self.length(parent)
        shared = need_int("tokens", length if tokens is None else tokens) // self.block_len
        if child in self._lengths:
            raise ArgumentError(
                "child",
                f"{child!r} is in the cache, with {counted(self.length(child), 'token')}: release "
                "it, or begin a sequence of another name",
            )
        if tokens is not None and tokens > length:
            raise ArgumentError(
                "tokens",
                f"tokens is {tokens}, and {parent!r} has {length} in the cache: share fewer",
            )
        own = self._blocks.get(parent, [])[:shared]
        for block in own:
            self._users[block] += 1
        self._blocks[child], self._lengths[child] = own, shared * self.block_len
        return shared * self.block_len

    def truncate(self, sequence: Any, length: int) -> None:
        """Forget all but the first tokens of a sequence, such as those that a speculation got
        wrong. Raises ArgumentError for more tokens than it has, and where a block that other
        sequences share would be written again."""
        if need_int("length", length) > self.length(sequence):
            raise ArgumentError(
                "length",
                f"length is {length}, and {sequence!r} has {self.length(sequence)} tokens in the "
                "cache: give that or less",
            )
        own, kept = self._blocks.get(sequence, []), -(-length // self.block_len)
        if length % self.block_len and self._users[own[kept - 1]] > 1:
            raise ArgumentError(
                "length",
                f"length is {length}, inside a block of {self.block_len} tokens that {sequence!r} "
                f"shares: give a multiple of {self.block_len}, or release who shares it",
            )
        if sequence in self._lengths:
            self._give_back(own[kept:])
            self._blocks[sequence], self._lengths[sequence] = own[:kept], length

    def release(self, sequence: Any) -> None:
        """Forget a sequence; blocks that no other shares may be handed out again."""
        self._give_back(self._blocks.pop(sequence, []))
        self._lengths.pop(sequence, None)

    def _give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free.append(block)

    def _reserve(self, sequences: Sequence[Any], q_lens: Sequence[int]) -> None:
        """Blocks for more tokens of some sequences, all or none."""
        wanted = {}
        for sequence, count in zip(sequences, q_lens, strict=True):
            total = self.length(sequence) + need_int("q_lens", count)
            held = len(self._blocks.get(sequence, []))
            wanted[sequence] = max(0, -(-total // self.block_len) - held)
        needed = sum(wanted.values())
        if needed > len(self._free):
            raise ArgumentError(
                "q_lens",
                f"q_lens need {counted(needed, 'block')} of {self.block_len} tokens, and "
                f"{len(self._free)} of {self.block_count} are free: release sequences, or make a "
                "larger cache",
            )
        for sequence, count in wanted.items():
            own = self._blocks.setdefault(sequence, [])
            for _ in range(count):
                own.append(self._free.pop())
                self._users[own[-1]] = 1


def _check_sequences(sequences: Sequence[Any], q_lens: Sequence[int]) -> None:
    if len(q_lens) != len(sequences):
        raise ArgumentError(
            "q_lens",
            f"q_lens has {counted(len(q_lens), 'entry', 'entries')}, and there are "
            f"{len(sequences)} sequences: give one for each",
        )
    if len(set(sequences)) != len(sequences):
        raise ArgumentError(
            "sequences",
            f"sequences {list(sequences)!r} names one twice: give each once, with all its tokens",
        )


class _TorchMemory:
    """Arrays of torch."""

    def __init__(self, ordinal: int | None) -> None:
        self._torch: Any = sys.modules["torch"]
        self._device = "cuda" if ordinal is None else f"cuda:{ordinal}"

    def pool(self, shape: tuple[int, ...], dtype: str) -> Any:
        """[block_count, num_kv_heads, block_len, n], seen as [block_count, block_len, ...]."""
        kind = getattr(self._torch, TORCH_NAMES[dtype])
        return self._torch.empty(shape, dtype=kind, device=self._device).transpose(1, 2)

    def ints(self, values: list[int], shape: tuple[int, ...] | None = None) -> Any:
        """int32 on the device."""
        found = self._torch.tensor(values, dtype=self._torch.int32).to(self._device)
        return found if shape is None else found.view(shape)


class _OwnMemory:
    """Arrays of PyCUDA."""

    def __init__(self, ordinal: int | None) -> None:
        self._context = driver.context_of_device(
            driver.current_device() if ordinal is None else ordinal
        )

    def pool(self, shape: tuple[int, ...], dtype: str) -> Any:
        """[block_count, num_kv_heads, block_len, n], seen as [block_count, block_len, ...]."""
        own = driver.gpu_array(self._context, shape, NUMPY_NAMES[dtype])
        order = (0, 2, 1, 3)
        return type(own)(
            tuple(shape[axis] for axis in order),
            own.dtype,
            base=own,
            gpudata=own.gpudata,
            strides=tuple(own.strides[axis] for axis in order),
        )

    def ints(self, values: list[int], shape: tuple[int, ...] | None = None) -> Any:
        """int32 on the device."""
        import numpy as np

        host = np.array(values, np.int32).reshape(shape or (len(values),))
        array = driver.gpu_array(self._context, host.shape, "int32")
        with self._context:
            array.set(host)
        return array
