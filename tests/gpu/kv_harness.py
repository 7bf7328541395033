# SPDX-License-Identifier: Apache-2.0
"""Caches of any element type on the device, laid out from rows that the reference has quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import layouts
from attn_codegen.config import AttentionConfig, Cache, KvDtype
from layouts import POISON, LinearStyle, PagedStyle, Strided, strided_rows
from quantiser import Quantised, dequantise, quantise
from reference import Batch, Bits, Floats, from_bits, to_bits
from reference_torch import DTYPES, torch

DEVICE = "cuda"
SCALE_OF_E4M3 = 2.0**-7 * 1.1
"""About what makes e4m3 hold a few times the standard normal distribution, and no power of two."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the arrays of a cache lie."""

    block_len: int = 16
    linear_style: LinearStyle = LinearStyle.CONTIGUOUS
    paged_style: PagedStyle = PagedStyle.NHD
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """K or V of all keys as a cache keeps it, 16 bits at a time: codes [keys, num_kv_heads, n],
    pairs [keys, num_kv_heads, 2] or None."""

    codes: Bits
    pairs: Bits | None

    def of(self, keys: np.ndarray) -> Rows:
        """Those of some keys, by their numbers."""
        return Rows(self.codes[keys], None if self.pairs is None else self.pairs[keys])

    def without(self, absent: np.ndarray) -> Rows:
        """The same with NaN bits where [keys] says that a row is not there yet."""
        pairs = None if self.pairs is None else self.pairs.copy()
        rows = Rows(self.codes.copy(), pairs)
        rows.codes[absent] = POISON
        if pairs is not None:
            pairs[absent] = POISON
        return rows


@dataclass(slots=True, eq=False)
class CacheOnDevice:
    """`call`: the arguments that describe it; `buffers`: all of its memory, poison included."""

    call: dict[str, Any]
    buffers: list[torch.Tensor]

    def bits(self) -> list[Bits]:
        """What the memory holds."""
        return [buffer.cpu().numpy().view(np.uint16).copy() for buffer in self.buffers]


def scales_of(config: AttentionConfig, heads: int, per_head: bool) -> np.ndarray:
    """[num_kv_heads] e4m3 scales of one of K and V."""
    steps = 1 + np.arange(heads) / 5 if per_head else np.ones(heads)
    return (SCALE_OF_E4M3 * steps).astype(np.float32)


def kept(config: AttentionConfig, rows: Bits, scales: np.ndarray) -> tuple[Rows, Floats]:
    """What a cache of the configuration keeps of rows [keys, num_kv_heads, head_dim], and the exact
    values that this stands for."""
    dtype, kv_dtype = config.dtype.value, config.kv_dtype
    if kv_dtype is KvDtype.SAME:
        return Rows(rows, None), from_bits(rows, dtype)
    found: Quantised = quantise(rows, dtype, kv_dtype.value, scales)
    values = dequantise(found, dtype, kv_dtype.value, scales)
    return Rows(np.ascontiguousarray(found.codes).view(np.uint16), found.pairs), values


def upload(
    config: AttentionConfig,
    batch: Batch,
    k: Rows,
    v: Rows,
    layout: Layout,
    scales: tuple[np.ndarray, np.ndarray] | None = None,
    first_keys: Sequence[int] = (),
) -> CacheOnDevice:
    """A cache of the configuration's kind; the same layout gives the same places. Nothing is there
    in front of `first_keys`."""
    placed = _Placed(config)
    if config.cache is Cache.BLOCK:
        pairs = None if k.pairs is None or v.pairs is None else (k.pairs, v.pairs)
        codes, rng = (k.codes, v.codes), layout_rng(layout)
        block = layouts.block_cache(batch, *codes, layout.block_len, rng, pairs, first_keys)
        buffer = placed.buffer(block.buffer)
        placed.call |= {
            "block_ptrs": torch.from_numpy(block.block_ptrs(buffer.data_ptr())).to(DEVICE),
            "cu_block_nums": ints(block.cu_block_nums),
            "block_len": block.block_len,
            "layer_offset": block.layer_offset,
        }
    else:
        place = partial(_place_rows, placed, batch, layout, first_keys)
        place(k.codes, v.codes, ("k", "v"), is_codes=True)
        if k.pairs is not None and v.pairs is not None:
            place(k.pairs, v.pairs, ("k_pairs", "v_pairs"), is_codes=False)
    if scales is not None:
        for name, values in zip(("k_scale", "v_scale"), scales, strict=True):
            one = values[:1] if (values == values[0]).all() else values
            placed.call[name] = torch.from_numpy(one).to(DEVICE)
    return CacheOnDevice(placed.call, placed.buffers)


def layout_rng(layout: Layout) -> np.random.Generator:
    """Draws the same places for codes and for pairs."""
    return np.random.default_rng(layout.seed)


def ints(values: Any) -> torch.Tensor:
    """int32 on the device."""
    return torch.as_tensor(np.asarray(values, np.int32), device=DEVICE)


def new_keys(batch: Batch, finished: Sequence[bool]) -> np.ndarray:
    """[keys] whether a call that brings new rows along writes a key."""
    new = np.zeros(batch.key_num, bool)
    for b, end in enumerate(batch.cu_k_len[1:]):
        if not finished[b]:
            new[max(end - batch.q_lens[b], batch.cu_k_len[b]) : end] = True
    return new


def new_rows(
    batch: Batch, rows: Bits, rng: np.random.Generator, dtype: str, behind: int = 0
) -> torch.Tensor:
    """The rows of the new tokens, [token_num + behind, num_kv_heads, head_dim] in a wider array;
    those `behind` belong to no sequence."""
    tokens = [
        max(0, end - q_len + i)
        for end, q_len in zip(batch.cu_k_len[1:], batch.q_lens, strict=True)
        for i in range(q_len)
    ]
    extra = np.full((behind, *rows.shape[1:]), 0x1234, np.uint16)
    found = np.concatenate([rows[np.array(tokens, np.int64)], extra])
    strided = strided_rows(found, int(rng.choice([0, 8, 64])), rng)
    base = torch.from_numpy(strided.base.view(np.int16)).to(DEVICE).view(DTYPES[dtype])
    return torch.as_strided(base, strided.shape, strided.strides)


def draw_rows(
    rng: np.random.Generator, keys: int, heads: int, width: int, dtype: str, amplitude: float = 1.0
) -> Bits:
    """Rows with an offset of their own, and now and then one of a single value."""
    x = rng.standard_normal((keys, heads, width)) * amplitude
    x += rng.standard_normal((keys, heads, 1)) * amplitude
    x[rng.random(keys) < 0.05] = 0.7 * amplitude
    return to_bits(x.astype(np.float32), dtype)


class _Placed:
    """The arguments of a cache, and the buffers behind them, each uploaded once."""

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.call: dict[str, Any] = {}
        self.buffers: list[torch.Tensor] = []
        self._known: dict[int, tuple[Bits, torch.Tensor]] = {}

    def buffer(self, base: Bits) -> torch.Tensor:
        if id(base) not in self._known:
            tensor = torch.from_numpy(base.view(np.int16)).to(DEVICE)
            self._known[id(base)] = base, tensor
            self.buffers.append(tensor)
        return self._known[id(base)][1]

    def view(self, strided: Strided, is_codes: bool) -> torch.Tensor:
        base = self.buffer(strided.base)
        if not is_codes or self.config.kv_dtype is KvDtype.SAME:
            typed = base.view(DTYPES[self.config.dtype.value])
            return torch.as_strided(typed, strided.shape, strided.strides, strided.offset)
        *outer, row = strided.shape
        strides = [2 * stride for stride in strided.strides[:-1]]
        return torch.as_strided(
            base.view(torch.uint8), (*outer, 2 * row), (*strides, 1), 2 * strided.offset
        )


def _place_rows(
    placed: _Placed,
    batch: Batch,
    layout: Layout,
    first_keys: Sequence[int],
    k: Bits,
    v: Bits,
    names: tuple[str, str],
    *,
    is_codes: bool,
) -> None:
    rng = layout_rng(layout)
    if placed.config.cache is Cache.LINEAR:
        gone = layouts.keys_gone(batch, first_keys)
        found = layouts.linear_cache(k, v, layout.linear_style, rng, gone)
    else:
        found = layouts.paged_cache(
            batch, k, v, layout.block_len, layout.paged_style, rng, first_keys
        )
        placed.call["block_table"] = ints(found.block_table)
    for name, strided in zip(names, (found.k, found.v), strict=True):
        placed.call[name] = placed.view(strided, is_codes)


def with_heads(batch: Batch, heads: int) -> Batch:
    """A batch of as many query heads as KV heads."""
    return replace(batch, num_heads=heads, num_kv_heads=heads)
