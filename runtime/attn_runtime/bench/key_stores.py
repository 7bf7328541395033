# SPDX-License-Identifier: Apache-2.0
"""K and V of a shape on the device, in every kind of cache: normal values, or random codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import Arch, Cache, Dtype, KvDtype
from attn_codegen.tile import PAIR_BYTES
from attn_runtime.bench import codes
from attn_runtime.bench.device import Bench, DeviceView
from attn_runtime.bench.oracle import from_bits
from attn_runtime.bench.shapes import Shape, cumulated
from attn_runtime.problem import SplitPolicy

_LAYER_OFFSET: Final = 256
"""Bytes of other layers in front of ours in a block; any multiple of 16 will do."""


class Layout(StrEnum):
    """How a paged pool lies: tokens of all heads together, heads one after the other, or K and V
    of a head side by side in one pool."""

    NHD = "nhd"
    HND = "hnd"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True, slots=True)
class Setup:
    """What is timed, beside the shape. `arch` None: the fastest that the device has; `tile` None:
    the one that the plan picks. `layout`, nhd or hnd, is that of a paged cache."""

    dtype: Dtype
    cache: Cache = Cache.LINEAR
    block_len: int = 64
    arch: Arch | None = None
    tile: str | None = None
    split: SplitPolicy | str = "heuristic"
    kv_dtype: KvDtype = KvDtype.SAME
    layout: Layout = Layout.NHD


class KeyStore(Protocol):
    """K and V on the device, in one kind of cache; `arguments` describe them to Attention."""

    arguments: dict[str, Any]

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None: ...

    def rows(self, sequence: int) -> tuple[Any, Any]:
        """(K, V) of a sequence as they are stored, [k_len, num_kv_heads, head_dim], on the host; of
        codes what they stand for."""

    def pairs(self, sequence: int) -> tuple[Any, Any]:
        """float64 (scale, zero) of the rows of K and of V, [k_len, num_kv_heads, 2]; None for rows
        that have none."""


def store_of(bench: Bench, shape: Shape, setup: Setup) -> KeyStore:
    """K and V of a shape."""
    return _STORES[setup.cache](bench, shape, setup)


def _arrays(bench: Bench, dims: Sequence[int], shape: Shape, setup: Setup) -> dict[str, Any]:
    """k and v [*dims, row], and what their codes are read by."""
    widths = {"k": shape.heads.head_dim, "v": shape.heads.value_dim}
    if setup.kv_dtype is KvDtype.SAME:
        return {name: bench.normal((*dims, width), setup.dtype) for name, width in widths.items()}
    rows = {
        name: bench.bytes((*dims, codes.code_bytes(setup.kv_dtype, width)))
        for name, width in widths.items()
    }
    return rows | codes.scales_of(bench, dims, setup.dtype, setup.kv_dtype)


class _Arrays:
    """K and V as arrays of their own, as they lie in memory; a subclass says where in them a
    sequence lies."""

    _arrays: dict[str, Any]
    _kv_dtype: KvDtype

    def _of(self, array: Any, sequence: int) -> Any:
        """The rows of a sequence, on the host."""
        raise NotImplementedError

    def rows(self, sequence: int) -> tuple[Any, Any]:
        stored = (self._of(self._arrays[name], sequence) for name in "kv")
        key, value = (
            codes.rows_of(rows, self._kv_dtype, pairs)
            for rows, pairs in zip(stored, self.pairs(sequence), strict=True)
        )
        return key, value

    def pairs(self, sequence: int) -> tuple[Any, Any]:
        if not self._kv_dtype.has_pairs:
            return None, None
        key, value = (
            from_bits(self._of(self._arrays[name], sequence)) for name in ("k_pairs", "v_pairs")
        )
        return key, value


class LinearStore(_Arrays):
    """Sequences end to end."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        dims = (shape.key_num, shape.heads.num_kv_heads)
        self._kv_dtype = setup.kv_dtype
        self._cu = cumulated(shape.k_lens)
        self.arguments = self._arrays = _arrays(bench, dims, shape, setup)

    def _of(self, array: Any, sequence: int) -> Any:
        return array[self._cu[sequence] : self._cu[sequence + 1]].get()


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Which blocks each sequence has: ids in random order over the whole pool."""

    ids: list[NDArray[np.int32]]
    count: int

    @classmethod
    def scattered(cls, shape: Shape, block_len: int) -> _Blocks:
        counts = [-(-k_len // block_len) for k_len in shape.k_lens]
        order = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
        return cls(np.split(order, np.cumsum(counts)[:-1]), sum(counts))

    def table(self) -> NDArray[np.int32]:
        """[batch_size, max_blocks]; unused entries are -1."""
        table = np.full((len(self.ids), max(map(len, self.ids))), -1, np.int32)
        for row, own in zip(table, self.ids, strict=True):
            row[: len(own)] = own
        return table


class PagedStore(_Arrays):
    """Pools [block, token, KV head, row], or with heads in front of tokens, which Attention is
    given as if they lay the other way round."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        self._blocks = _Blocks.scattered(shape, setup.block_len)
        self._k_lens, self._kv_dtype = shape.k_lens, setup.kv_dtype
        self._is_by_head = setup.layout is Layout.HND
        inner = (setup.block_len, shape.heads.num_kv_heads)
        dims = (self._blocks.count, *(inner[::-1] if self._is_by_head else inner))
        self._arrays = _arrays(bench, dims, shape, setup)
        self.arguments: dict[str, Any] = {
            name: _by_token(array) if self._is_by_head and len(array.shape) > 1 else array
            for name, array in self._arrays.items()
        }
        self.arguments["block_table"] = bench.to_device(self._blocks.table())

    def _of(self, array: Any, sequence: int) -> Any:
        blocks = [array[int(block)].get() for block in self._blocks.ids[sequence]]
        if self._is_by_head:
            blocks = [block.swapaxes(0, 1) for block in blocks]
        return np.concatenate(blocks)[: self._k_lens[sequence]]


def _by_token(pool: Any) -> DeviceView:
    """A pool [block, KV head, token, row] as [block, token, KV head, row]."""
    blocks, heads, tokens, row = pool.shape
    strides = (heads * tokens * row, row, tokens * row, 1)
    return DeviceView(pool, 0, (blocks, tokens, heads, row), strides)


class BlockStore:
    """TurboMind's blocks: from layer_offset on, [KV head][K, V][token][row], and behind all rows,
    where they are read by pairs, [KV head][K, V][token][scale, zero]."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        self._blocks = _Blocks.scattered(shape, setup.block_len)
        self._k_lens, self._setup = shape.k_lens, setup
        heads = shape.heads
        row = codes.code_bytes(setup.kv_dtype, heads.head_dim)
        self._dims = (heads.num_kv_heads, 2, setup.block_len, row)
        self._pool = self._filled(bench)
        ids = np.concatenate(self._blocks.ids).astype(np.int64)
        self.arguments: dict[str, Any] = {
            "block_ptrs": bench.to_device(int(self._pool.gpudata) + ids * self._pool.shape[1]),
            "cu_block_nums": bench.to_device(
                np.array(cumulated([len(own) for own in self._blocks.ids]), np.int32)
            ),
            "block_len": setup.block_len,
            "layer_offset": _LAYER_OFFSET,
        }
        if not setup.kv_dtype.has_pairs:
            self.arguments |= codes.scales_of(bench, (), setup.dtype, setup.kv_dtype)

    def _filled(self, bench: Bench) -> Any:
        """The pool, bytes [block, those of one]."""
        setup = self._setup
        rows = int(np.prod(self._dims[:-1]))
        end = _LAYER_OFFSET + int(np.prod(self._dims))
        if not setup.kv_dtype.has_pairs:
            return bench.bytes((self._blocks.count, end), setup.dtype)
        pairs = codes.pairs_of(setup.kv_dtype, setup.dtype, rows).view(np.uint8)
        pool = bench.bytes((self._blocks.count, end + pairs.size)).get()
        pool[:, end:] = pairs.ravel()
        return bench.to_device(pool)

    def rows(self, sequence: int) -> tuple[Any, Any]:
        rows, kv_dtype = self._part(sequence, _LAYER_OFFSET, self._dims), self._setup.kv_dtype
        if kv_dtype is KvDtype.SAME:
            rows = tuple(self._as_elements(part) for part in rows)
        key, value = (
            codes.rows_of(part, kv_dtype, pairs)
            for part, pairs in zip(rows, self.pairs(sequence), strict=True)
        )
        return key, value

    def pairs(self, sequence: int) -> tuple[Any, Any]:
        if not self._setup.kv_dtype.has_pairs:
            return None, None
        behind, dims = _LAYER_OFFSET + int(np.prod(self._dims)), (*self._dims[:-1], PAIR_BYTES)
        key, value = (
            from_bits(self._as_elements(part)) for part in self._part(sequence, behind, dims)
        )
        return key, value

    def _part(self, sequence: int, begin: int, dims: tuple[int, ...]) -> tuple[Any, Any]:
        """Bytes of K and of V, [k_len, KV head, those of a row], that lie as [KV head][K, V][token]
        from byte `begin` of each block on."""
        end = begin + int(np.prod(dims))
        blocks = [
            self._pool[int(block)].get()[begin:end].reshape(dims)
            for block in self._blocks.ids[sequence]
        ]
        stored = np.concatenate(blocks, axis=2)[:, :, : self._k_lens[sequence]]
        return stored[:, 0].swapaxes(0, 1), stored[:, 1].swapaxes(0, 1)

    def _as_elements(self, rows: Any) -> Any:
        is_bf16 = self._setup.dtype is Dtype.BF16
        return np.ascontiguousarray(rows).view(np.uint16 if is_bf16 else np.float16)


_STORES: Final[dict[Cache, type[KeyStore]]] = {
    Cache.LINEAR: LinearStore,
    Cache.PAGED: PagedStore,
    Cache.BLOCK: BlockStore,
}
