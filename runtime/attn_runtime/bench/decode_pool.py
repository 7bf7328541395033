# SPDX-License-Identifier: Apache-2.0
"""Our decode kernels over one pool of blocks, in which every copy of a cache has its own blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import Arch, Cache, Dtype, KvDtype, Mask, Mode
from attn_runtime.attention import Attention
from attn_runtime.bench import codes
from attn_runtime.bench.decode_shapes import DecodeCell
from attn_runtime.bench.device import Bench, DeviceView
from attn_runtime.bench.key_stores import Layout
from attn_runtime.bench.shapes import Heads, Shape, cumulated


@dataclass(frozen=True, slots=True)
class DecodeSetup:
    """What is timed, beside the cells."""

    dtype: Dtype
    heads: Heads
    layout: Layout = Layout.INTERLEAVED
    block_len: int = 64
    arch: Arch | None = None
    is_scattered: bool = False
    """Blocks come from all over the pool, and not from the part that a copy has for itself: each
    lies in a page of its own, whose address the GPU must look up first."""
    kv_dtype: KvDtype = KvDtype.SAME


# Axes of a pool as it lies in memory, and where block, K or V, token and head are among them.
_ORDERS: Final = {
    Layout.NHD: ("part", "block", "token", "head"),
    Layout.HND: ("part", "block", "head", "token"),
    Layout.INTERLEAVED: ("block", "head", "part", "token"),
}


class Pool:
    """K and V of `blocks` blocks, normal values or random codes; `arguments` describe them, with
    k and v [block, token, head, row]."""

    def __init__(self, bench: Bench, setup: DecodeSetup, blocks: int) -> None:
        heads, order = setup.heads, _ORDERS[setup.layout]
        sizes = {
            "part": 2,
            "block": blocks,
            "token": setup.block_len,
            "head": heads.num_kv_heads,
        }
        self._kv_dtype = setup.kv_dtype
        is_plain = setup.kv_dtype is KvDtype.SAME
        row = heads.head_dim if is_plain else codes.code_bytes(setup.kv_dtype, heads.head_dim)
        dims = (*(sizes[axis] for axis in order), row)
        flat = (math.prod(dims),)
        self.array = bench.normal(flat, setup.dtype) if is_plain else bench.bytes(flat)
        self._dims, self._order = dims, order
        k, v = _parts(self.array, dims, order)
        self.arguments: dict[str, Any] = {"k": k, "v": v}
        if setup.kv_dtype.has_pairs:
            array = bench.to_device(
                codes.pairs_of(setup.kv_dtype, setup.dtype, math.prod(dims[:-1]))
            )
            k_pairs, v_pairs = _parts(array, (*dims[:-1], 2), order)
            self.arguments |= {"k_pairs": k_pairs, "v_pairs": v_pairs}
        elif not is_plain:
            self.arguments |= codes.scales_of(bench, (), setup.dtype, setup.kv_dtype)

    def blocks(self, ids: NDArray[np.int32]) -> tuple[Any, Any]:
        """(K, V) of some blocks on the host, [token, head, head_dim], tokens end to end; of codes
        what they stand for."""
        parts: tuple[list[Any], list[Any]] = ([], [])
        for block in ids:
            for part, found in enumerate(parts):
                found.append(self._block(int(block), part))
        key, value = (np.concatenate(found) for found in parts)
        return codes.values_of(key, self._kv_dtype), codes.values_of(value, self._kv_dtype)

    def _block(self, block: int, part: int) -> Any:
        """One block, [token, head, head_dim], read as it lies: in one run, or with the other part
        between its heads."""
        if self._order[0] == "part":
            size = math.prod(self._dims[2:])
            begin = (part * self._dims[1] + block) * size
            run = self.array[begin : begin + size].get().reshape(self._dims[2:])
            return run if self._order[2] == "token" else run.swapaxes(0, 1)
        size = math.prod(self._dims[1:])
        run = self.array[block * size : (block + 1) * size].get().reshape(self._dims[1:])
        return run[:, part].swapaxes(0, 1)


def _parts(
    array: Any, dims: tuple[int, ...], order: tuple[str, ...]
) -> tuple[DeviceView, DeviceView]:
    """K and V of an array that lies in an order of _ORDERS, [block, token, head, row]."""
    strides = {axis: math.prod(dims[place:]) for place, axis in enumerate(order, start=1)}
    sizes = dict(zip(order, dims, strict=False))
    axes = ("block", "token", "head")
    shape = (*(sizes[axis] for axis in axes), dims[-1])
    steps = (*(strides[axis] for axis in axes), 1)
    key, value = (DeviceView(array, part * strides["part"], shape, steps) for part in (0, 1))
    return key, value


class DecodeCall:
    """Attention over the copies of a cell's cache; `out` is what the last launch wrote."""

    def __init__(self, bench: Bench, cell: DecodeCell, setup: DecodeSetup, pool: Pool) -> None:
        self.shape: Shape = cell.shape
        self.dtype = setup.dtype
        shape, heads = cell.shape, setup.heads
        attention = Attention(
            mode=Mode.DECODE,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim,
            dtype=setup.dtype,
            kv_dtype=setup.kv_dtype,
            cache=Cache.PAGED,
            mask=Mask.CAUSAL,
            arch=setup.arch,
            device=bench.context.device.ordinal,
        )
        attention.prepare()
        dims = (shape.token_num, heads.num_heads, heads.head_dim)
        self.q, self.out = (bench.normal(dims, setup.dtype) for _ in range(2))
        bounds = {"max_q_len": max(shape.q_lens), "max_k_len": max(shape.k_lens)}
        size = attention.workspace_size(
            token_num=shape.token_num, batch_size=shape.batch_size, **bounds
        )
        self._attention, self._pool = attention, pool
        self._tables = tables_of(
            shape, cell.rotation, setup.block_len, is_scattered=setup.is_scattered
        )
        self._on_device = [bench.to_device(table) for table in self._tables]
        self._given: dict[str, Any] = {
            "q": self.q,
            **pool.arguments,
            "out": self.out,
            "cu_q_len": bench.to_device(np.array(cumulated(shape.q_lens), np.int32)),
            "cu_k_len": bench.to_device(np.array(cumulated(shape.k_lens), np.int32)),
            "workspace": bench.empty((size,), "uint8") if size else None,
            **bounds,
        }

    def __call__(self, copy: int = 0, stream: int = 0) -> object:
        """One launch over a copy of the cache."""
        table = self._on_device[copy % len(self._on_device)]
        return self._attention(**self._given, block_table=table, stream=stream)

    def rows(self, sequence: int) -> tuple[Any, Any]:
        """(K, V) of a sequence in the first copy, on the host."""
        table, k_len = self._tables[0][sequence], self.shape.k_lens[sequence]
        key, value = self._pool.blocks(table[table >= 0])
        return key[:k_len], value[:k_len]


def blocks_of(shape: Shape, block_len: int) -> int:
    """Of all sequences."""
    return sum(-(-k_len // block_len) for k_len in shape.k_lens)


def tables_of(
    shape: Shape, copies: int, block_len: int, *, is_scattered: bool = False
) -> list[NDArray[np.int32]]:
    """A block table [batch_size, max_blocks] for each copy; no two have a block in common, and
    blocks come in random order. Unused entries are -1."""
    counts = [-(-k_len // block_len) for k_len in shape.k_lens]
    rng, blocks = np.random.default_rng(1), sum(counts)
    if is_scattered:
        orders = np.split(rng.permutation(copies * blocks).astype(np.int32), copies)
    else:
        orders = [
            (copy * blocks + rng.permutation(blocks)).astype(np.int32) for copy in range(copies)
        ]
    tables = []
    for own in orders:
        table = np.full((len(counts), max(counts)), -1, np.int32)
        for row, ids in zip(table, np.split(own, np.cumsum(counts)[:-1]), strict=True):
            row[: len(ids)] = ids
        tables.append(table)
    return tables
