# SPDX-License-Identifier: Apache-2.0
"""Which problems are timed, how much work each is, and where it stands in the table. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from attn_codegen.config import Mask
from attn_runtime.bench.errors import BenchError

WIDTH: Final = 2048
"""Heads x head_dim of the FlashAttention-3 paper's grid, whose batches hold 16,384 tokens."""
TOKENS: Final = 16_384
LENGTHS: Final = (512, 1024, 2048, 4096, 8192, 16_384)

_SHAPE_HELP: Final = (
    "write BATCHxHEADSxKV_HEADSxQUERIESxKEYSxHEAD_DIM, such as 4x32x8x2048x2048x128"
)


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, KV heads, and the width of each; `head_dim_v` 0 is head_dim."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int = 0

    @property
    def value_dim(self) -> int:
        """The width of V and of the output."""
        return self.head_dim_v or self.head_dim


MODELS: Final = {
    "gemma2-9b": Heads(16, 8, 256),
    "gemma3-27b": Heads(32, 16, 128),
    "gpt-oss-120b": Heads(64, 8, 64),
    "llama2-7b": Heads(32, 32, 128),
    "llama3-8b": Heads(32, 8, 128),
    "llama3-70b": Heads(64, 8, 128),
    "llama3-405b": Heads(128, 8, 128),
    "mistral-7b": Heads(32, 8, 128),
    "mixtral-8x7b": Heads(32, 8, 128),
    "phi3-mini": Heads(32, 32, 96),
    "qwen2.5-7b": Heads(28, 4, 128),
    "qwen2.5-72b": Heads(64, 8, 128),
    "qwen3-8b": Heads(32, 8, 128),
    "qwen3-14b": Heads(40, 8, 128),
    "qwen3-32b": Heads(64, 8, 128),
    "qwen3-30b-a3b": Heads(32, 4, 128),
    "qwen3-235b-a22b": Heads(64, 4, 128),
}
"""Head shapes of public models, from the configuration that each is published with."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One batch. `row` and `column` say where its figures stand in the table."""

    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    heads: Heads
    mask: Mask
    row: str
    column: str

    @property
    def token_num(self) -> int:
        """Rows of q."""
        return sum(self.q_lens)

    @property
    def key_num(self) -> int:
        """Keys of all sequences."""
        return sum(self.k_lens)

    @property
    def batch_size(self) -> int:
        """Sequences."""
        return len(self.q_lens)

    @property
    def is_uniform(self) -> bool:
        """Every sequence is as long as the first."""
        return len(set(self.q_lens)) == 1 == len(set(self.k_lens))

    @property
    def is_square(self) -> bool:
        """Each sequence has as many queries as keys: all ways to align a causal mask agree."""
        return self.q_lens == self.k_lens

    @property
    def flops(self) -> float:
        """Of the two products; see `flops_of`."""
        return flops_of(self, self.mask)


def flops_of(shape: Shape, mask: Mask) -> float:
    """Two products, of 2 head_dim and 2 head_dim_v operations, for each pair of a query and a key
    that it sees.

    The causal mask counts half of the square that it cuts, as papers do: q k - q^2 / 2 pairs of q
    queries and k >= q keys.
    """
    heads = shape.heads
    pairs = sum(_pairs(q, k, mask) for q, k in zip(shape.q_lens, shape.k_lens, strict=True))
    return 2.0 * (heads.head_dim + heads.value_dim) * heads.num_heads * pairs


def _pairs(q_len: int, k_len: int, mask: Mask) -> float:
    if mask is Mask.FULL:
        return q_len * k_len
    square = min(q_len, k_len)
    return square * k_len - square * square / 2


def heads_for(head_dim: int, num_heads: int | None, num_kv_heads: int | None) -> Heads:
    """The heads of a width: 2048 / head_dim of them unless said, each with K and V of its own."""
    heads = num_heads or max(1, WIDTH // head_dim)
    kv_heads = num_kv_heads or heads
    if heads % kv_heads:
        raise BenchError(f"{kv_heads} KV heads do not divide {heads} heads: give a divisor")
    return Heads(heads, kv_heads, head_dim)


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows: heads and masks. Columns: lengths. `batch` None fills `tokens`; `is_ragged`: lengths
    drawn uniformly around those of the columns."""

    heads: tuple[Heads, ...]
    masks: tuple[Mask, ...]
    lengths: tuple[int, ...] = LENGTHS
    tokens: int = TOKENS
    batch: int | None = None
    is_ragged: bool = False

    def shapes(self) -> list[Shape]:
        """Every cell, row by row."""
        return [
            Shape(lens, lens, heads, mask, _row(heads, mask, self.heads), short(length))
            for heads in self.heads
            for mask in self.masks
            for length in self.lengths
            for lens in [self._lens(length)]
        ]

    def _lens(self, length: int) -> tuple[int, ...]:
        if self.batch is not None:
            return (length,) * self.batch
        if length > self.tokens:
            raise BenchError(
                f"a sequence of {length} does not fit in {self.tokens} tokens: give more --tokens, "
                "shorter --lengths, or --batch"
            )
        if self.is_ragged:
            return ragged_lens(length, self.tokens)
        return (length,) * (self.tokens // length)


def _row(heads: Heads, mask: Mask, among: Sequence[Heads]) -> str:
    width = f"{heads.head_dim}"
    shared = {item.head_dim: item for item in among}
    if heads.num_heads != heads.num_kv_heads or len(shared) < len(among):
        width += f" {heads.num_heads}/{heads.num_kv_heads}"
    return f"{width} {mask}"


def ragged_lens(mean: int, total: int) -> tuple[int, ...]:
    """Lengths drawn uniformly from 1 to 2 mean - 1, the last one cut so that all sum to `total`.
    The same for the same arguments."""
    rng = np.random.default_rng(mean)
    lens: list[int] = []
    while (left := total - sum(lens)) > 0:
        lens.append(min(left, int(rng.integers(1, 2 * mean))))
    return tuple(lens)


def chunk(q_len: int, k_len: int, heads: Sequence[Heads], masks: Sequence[Mask]) -> list[Shape]:
    """The last q_len tokens of one sequence of k_len."""
    column = f"{q_len}:{short(k_len)}"
    return [
        Shape((q_len,), (k_len,), one, mask, _row(one, mask, heads), column)
        for one in heads
        for mask in masks
    ]


def parse_chunk(text: str) -> tuple[int, int]:
    """512:32768 or 512:32k. Raises BenchError."""
    queries, separator, keys = text.partition(":")
    if not separator:
        raise BenchError(f"chunk {text!r} is not QUERIES:KEYS: write it as 512:32768")
    q_len, k_len = parse_length(queries, "chunk"), parse_length(keys, "chunk")
    if q_len > k_len:
        raise BenchError(
            f"chunk {text!r} has more queries than keys: the keys include the "
            f"chunk's, so write at least {q_len}:{q_len}"
        )
    return q_len, k_len


def parse_length(text: str, what: str = "length") -> int:
    """512, 16384 or 16k, at least 1; `what` it is in messages. Raises BenchError."""
    word = text.strip().lower()
    digits, scale = (word[:-1], 1024) if word.endswith("k") else (word, 1)
    if not digits.isdecimal() or int(digits) == 0:
        raise BenchError(
            f"{what} {text!r} is no whole number from 1 on: write one, such as 64, 4096 or 4k"
        )
    return int(digits) * scale


def parse_shape(text: str, masks: Sequence[Mask]) -> list[Shape]:
    """A shape of one's own under each mask. Raises BenchError."""
    try:
        numbers = [int(word) for word in text.strip().lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or min(numbers) < 1:
        raise BenchError(f"shape {text.strip()!r} is no shape: {_SHAPE_HELP}")
    batch, heads, kv_heads, q_len, k_len, head_dim = numbers
    own = heads_for(head_dim, heads, kv_heads)
    word = "x".join(map(str, numbers))
    return [
        Shape((q_len,) * batch, (k_len,) * batch, own, mask, f"{word} {mask}", "") for mask in masks
    ]


def parse_shapes(text: str, masks: Sequence[Mask]) -> list[Shape]:
    """One shape a line; # begins a comment."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    found = [shape for line in lines if line for shape in parse_shape(line, masks)]
    if not found:
        raise BenchError(f"the file holds no shape: {_SHAPE_HELP}, one a line")
    return found


def short(length: int) -> str:
    """16k for 16384."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def cumulated(lens: Sequence[int]) -> list[int]:
    """[n + 1] running sums from 0."""
    return [0, *accumulate(lens)]


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios: that of the inverse ratios is its inverse."""
    return math.exp(sum(map(math.log, values)) / len(values))
