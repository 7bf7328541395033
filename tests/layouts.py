# SPDX-License-Identifier: Apache-2.0
"""The same logical K and V laid out as linear, block and paged caches, in hostile surroundings.

Every row that no sequence owns is NaN, every block stands in a random place, and every table entry
behind the last used one is wild. So are, with `first_keys`, the rows and entries of keys in front
of them. Elements are 16-bit patterns, so f16 and bf16 are one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from reference import Batch, Bits, Ints, cumulated

POISON = 0x7FFF
"""NaN in f16 and in bf16."""

WILD_BLOCKS = (-1, -(2**31), 2**31 - 1, 123_456_789)


class LinearStyle(StrEnum):
    """How the rows of a linear cache lie."""

    CONTIGUOUS = "contiguous"
    HEAD_MAJOR = "head-major"
    PADDED = "padded"
    FUSED = "fused"


class PagedStyle(StrEnum):
    """How the pools of a paged cache lie."""

    NHD = "nhd"
    HND = "hnd"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True, slots=True, eq=False)
class Strided:
    """A view of a flat buffer: shape, strides and offset in elements."""

    base: Bits
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def view(self) -> Bits:
        """The view as a numpy array."""
        return np.lib.stride_tricks.as_strided(
            self.base[self.offset :], self.shape, [2 * stride for stride in self.strides]
        )


@dataclass(frozen=True, slots=True, eq=False)
class LinearCache:
    """k [tokens, num_kv_heads, head_dim], v [tokens, num_kv_heads, head_dim_v]."""

    k: Strided
    v: Strided


@dataclass(frozen=True, slots=True, eq=False)
class BlockCache:
    """TurboMind's blocks in one buffer: `offsets` are bytes into it where `used`, else wild."""

    buffer: Bits
    offsets: NDArray[np.int64]
    used: NDArray[np.bool_]
    cu_block_nums: Ints
    block_len: int
    layer_offset: int

    def block_ptrs(self, address: int) -> NDArray[np.int64]:
        """Addresses of the blocks when the buffer stands at `address`."""
        return np.where(self.used, self.offsets + address, self.offsets)


@dataclass(frozen=True, slots=True, eq=False)
class PagedCache:
    """Pools [block_count, block_len, num_kv_heads, head_dim or head_dim_v], and their table."""

    k: Strided
    v: Strided
    block_table: Ints
    block_len: int


Cache = LinearCache | BlockCache | PagedCache


def first_keys(batch: Batch) -> tuple[int, ...]:
    """Of each sequence, the first key that a query sees: others may be gone."""
    if not batch.window:
        return (0,) * len(batch.k_lens)
    lens = zip(batch.q_lens, batch.k_lens, strict=True)
    return tuple(min(max(k_len - q_len - batch.window + 1, 0), k_len) for q_len, k_len in lens)


def keys_gone(batch: Batch, first_keys: Sequence[int]) -> NDArray[np.bool_]:
    """[keys] whether a key lies in front of the first of its sequence that need be there."""
    begins = batch.cu_k_len[:-1]
    first = np.repeat(begins + np.array(first_keys or 0), batch.k_lens)
    return np.asarray(np.arange(batch.key_num) < first)


def strided_rows(rows: Bits, padding: int, rng: np.random.Generator) -> Strided:
    """q [token_num, num_heads, head_dim], `padding` elements of NaN behind each token."""
    tokens, heads, dim = rows.shape
    stride = heads * dim + padding
    target = _poisoned(tokens * stride + 8 * int(rng.integers(3)))
    strided = Strided(target, 0, rows.shape, (stride, dim, 1))
    strided.view[...] = rows
    return strided


def linear_cache(
    k: Bits,
    v: Bits,
    style: LinearStyle,
    rng: np.random.Generator,
    gone: NDArray[np.bool_] | None = None,
) -> LinearCache:
    """Rows back to back, with NaN rows in front of the first and behind the last; so are those of
    the keys [keys] that are `gone`."""
    keys, heads, dim = k.shape
    dim_v = v.shape[2]
    front, back = (int(count) for count in rng.integers(1, 9, 2))
    rows = front + keys + back
    if style is LinearStyle.FUSED:
        base = _poisoned(rows * heads * (dim + dim_v))
        strides = (heads * (dim + dim_v), dim + dim_v, 1)
        key = Strided(base, 0, (rows, heads, dim), strides)
        value = Strided(base, dim, (rows, heads, dim_v), strides)
    else:
        key = _linear_rows((rows, heads, dim), style, 8)
        value = _linear_rows((rows, heads, dim_v), style, 24)
    there = front + np.flatnonzero(np.ones(keys, bool) if gone is None else ~gone)
    key.view[there] = k[there - front]
    value.view[there] = v[there - front]
    return LinearCache(_skip(key, front), _skip(value, front))


def block_cache(
    batch: Batch,
    k: Bits,
    v: Bits,
    block_len: int,
    rng: np.random.Generator,
    pairs: tuple[Bits, Bits] | None = None,
    first_keys: Sequence[int] = (),
) -> BlockCache:
    """[kv_head][K, V][token][head_dim] from the layer's offset on, other layers around it. With
    `pairs` of K and of V [keys, num_kv_heads, 2], behind it [kv_head][K, V][token][2]."""
    _, heads, dim = k.shape
    used_blocks = [-(-k_len // block_len) for k_len in batch.k_lens]
    entries = [count + int(rng.integers(3)) for count in used_blocks]
    block_count = sum(used_blocks) + 2
    code_part, pair_part = (heads * 2 * block_len * width for width in (dim, 2 if pairs else 0))
    layer = code_part + -(-pair_part // 8) * 8  # the next layer is aligned to 16 bytes
    before, after = (8 * int(count) for count in rng.integers(1, 40, 2))
    blocks = _poisoned(block_count * (before + layer + after)).reshape(block_count, -1)
    parts = [(blocks[:, before : before + code_part], (k, v))]
    if pairs:
        parts.append((blocks[:, before + code_part :][:, :pair_part], pairs))
    shape = (block_count, heads, 2, block_len, -1)
    targets = [(part.reshape(shape), rows) for part, rows in parts]

    offsets = rng.integers(-(2**62), 2**62, sum(entries))
    used = np.zeros(sum(entries), bool)
    ids = rng.permutation(block_count)
    first, cu_k = 0, batch.cu_k_len
    for b, k_len in enumerate(batch.k_lens):
        own, ids = ids[: used_blocks[b]], ids[used_blocks[b] :]
        begin = first_keys[b] if first_keys else 0
        there = slice(first + begin // block_len, first + len(own))
        offsets[there] = own[begin // block_len :] * blocks.strides[0]
        used[there] = True
        first += entries[b]
        token = np.arange(begin, k_len)
        keys = slice(cu_k[b] + begin, cu_k[b + 1])
        for target, (of_k, of_v) in targets:
            target[own[token // block_len], :, 0, token % block_len] = of_k[keys]
            target[own[token // block_len], :, 1, token % block_len] = of_v[keys]
    assert all(target.base is blocks.base for target, _ in targets), "the rows are views"
    return BlockCache(
        blocks.reshape(-1), offsets, used, cumulated(tuple(entries)), block_len, 2 * before
    )


def paged_cache(
    batch: Batch,
    k: Bits,
    v: Bits,
    block_len: int,
    style: PagedStyle,
    rng: np.random.Generator,
    first_keys: Sequence[int] = (),
) -> PagedCache:
    """Blocks in pools, at random ids."""
    heads, dim, dim_v = k.shape[1], k.shape[2], v.shape[2]
    used_blocks = [-(-k_len // block_len) for k_len in batch.k_lens]
    block_count = sum(used_blocks) + 2
    max_blocks = max(used_blocks, default=0) + int(rng.integers(1, 4))
    key, value = _pools((block_count, block_len, heads), dim, dim_v, style)

    table = rng.choice(WILD_BLOCKS, (len(batch.k_lens), max_blocks)).astype(np.int32)
    ids = rng.permutation(block_count).astype(np.int32)
    cu_k = batch.cu_k_len
    for b, k_len in enumerate(batch.k_lens):
        own, ids = ids[: used_blocks[b]], ids[used_blocks[b] :]
        begin = first_keys[b] if first_keys else 0
        table[b, begin // block_len : len(own)] = own[begin // block_len :]
        token = np.arange(begin, k_len)
        keys = slice(cu_k[b] + begin, cu_k[b + 1])
        key.view[own[token // block_len], token % block_len] = k[keys]
        value.view[own[token // block_len], token % block_len] = v[keys]
    return PagedCache(key, value, table, block_len)


def _pools(
    shape: tuple[int, int, int], dim: int, dim_v: int, style: PagedStyle
) -> tuple[Strided, Strided]:
    """NaN pools of K and of V; one pool [block_count, K and V, ...] when they are interleaved."""
    blocks, block_len, heads = shape
    if style is PagedStyle.INTERLEAVED:
        wide = max(dim, dim_v)
        half = block_len * heads * wide
        base = _poisoned(blocks * 2 * half)
        strides = (2 * half, heads * wide, wide, 1)
        return (
            Strided(base, 0, (*shape, dim), strides),
            Strided(base, half, (*shape, dim_v), strides),
        )
    pools = []
    for width in (dim, dim_v):
        inner = (heads * width, width) if style is PagedStyle.NHD else (width, block_len * width)
        strides = (block_len * heads * width, *inner, 1)
        pools.append(Strided(_poisoned(blocks * strides[0]), 0, (*shape, width), strides))
    return pools[0], pools[1]


def _linear_rows(shape: tuple[int, int, int], style: LinearStyle, padding: int) -> Strided:
    rows, heads, dim = shape
    if style is LinearStyle.HEAD_MAJOR:
        strides = (dim, rows * dim, 1)
        return Strided(_poisoned(rows * heads * dim), 0, shape, strides)
    row = dim + (padding if style is LinearStyle.PADDED else 0)
    token = heads * row + (2 * padding if style is LinearStyle.PADDED else 0)
    return Strided(_poisoned(rows * token), 0, shape, (token, row, 1))


def _skip(rows: Strided, count: int) -> Strided:
    """The rows from `count` on."""
    offset = rows.offset + count * rows.strides[0]
    return Strided(rows.base, offset, (rows.shape[0] - count, *rows.shape[1:]), rows.strides)


def _poisoned(elements: int) -> Bits:
    return np.full(elements, POISON, np.uint16)
