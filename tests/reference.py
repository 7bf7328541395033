# SPDX-License-Identifier: Apache-2.0
"""The oracle: attention over sequences of any length, in float64 numpy, from its definition.

    out[i] = sum_j p_ij v[j]     p_ij = exp(s_ij - lse_i)     s_ij = scale * q[i] . k[j]
    lse_i  = log (sum_j exp(s_ij) + exp(sink))                over the keys j that query i sees

The sink is a logit per head without a value; without sinks its term is 0. A row that sees no key is
0, its lse -inf, sink or no sink. Rows of finished sequences, and rows behind the last
sequence, stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bits = NDArray[np.uint16]
Ints = NDArray[np.int32]

UNIT_ROUNDOFF = {"f16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of rounding to the element type."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is asked of one call: lengths, heads, mask. `scale` 0 is 1 / sqrt(head_dim)."""

    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int
    causal: bool
    window: int = 0
    scale: float = 0.0
    finished: tuple[bool, ...] = ()
    sinks: tuple[float, ...] = ()
    """A logit for each query head; empty: none."""

    @property
    def token_num(self) -> int:
        """Rows of q."""
        return sum(self.q_lens)

    @property
    def key_num(self) -> int:
        """Keys of all sequences."""
        return sum(self.k_lens)

    @property
    def cu_q_len(self) -> Ints:
        """[batch_size + 1] first row of each sequence, and the end."""
        return cumulated(self.q_lens)

    @property
    def cu_k_len(self) -> Ints:
        """[batch_size + 1] first key of each sequence, and the end."""
        return cumulated(self.k_lens)

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def softmax_scale(self) -> float:
        """What q . k is multiplied by."""
        return self.scale or self.head_dim**-0.5

    def is_finished(self, sequence: int) -> bool:
        """Whether the rows of a sequence are left alone."""
        return bool(self.finished) and self.finished[sequence]

    def sink(self, head: int) -> float:
        """The sink of a head; -inf adds nothing."""
        return self.sinks[head] if self.sinks else -np.inf

    def live_rows(self) -> NDArray[np.bool_]:
        """[token_num] rows that a call writes."""
        return np.repeat(
            [not self.is_finished(b) for b in range(len(self.q_lens))], self.q_lens
        ).astype(bool)

    def keys_seen(self) -> NDArray[np.int64]:
        """[token_num] number of keys that each row sees."""
        counts = []
        for q_len, k_len in zip(self.q_lens, self.k_lens, strict=True):
            first, end = visible_range(q_len, k_len, self.causal, self.window)
            counts.append(np.maximum(end - first, 0))
        return np.concatenate([*counts, np.zeros(0, np.int64)])


class Result(NamedTuple):
    """out [token_num, num_heads, head_dim_v]; lse [num_heads, token_num]."""

    out: Floats
    lse: Floats


def cumulated(lens: tuple[int, ...]) -> Ints:
    """[n + 1] running sums from 0."""
    return np.array([0, *accumulate(lens)], np.int32)


def visible(q_len: int, k_len: int, causal: bool, window: int) -> NDArray[np.bool_]:
    """[q_len, k_len] whether query i sees key j, aligned bottom-right."""
    position = np.arange(q_len)[:, None] + k_len - q_len
    key = np.arange(k_len)[None, :]
    seen = np.ones((q_len, k_len), bool)
    if causal:
        seen &= key <= position
    if window:
        seen &= position - window < key
        if not causal:
            seen &= key < position + window
    return seen


def visible_range(
    q_len: int, k_len: int, causal: bool, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, end) of the keys that each query sees, [q_len] each; nothing where end <= first."""
    position = np.arange(q_len, dtype=np.int64) + k_len - q_len
    first = np.maximum(position - window + 1, 0) if window else np.zeros_like(position)
    end = np.full_like(position, k_len)
    if causal:
        end = np.minimum(position + 1, k_len)
    elif window:
        end = np.minimum(position + window, k_len)
    return first, end


def attention(
    batch: Batch,
    q: Floats,
    k: Floats,
    v: Floats,
    out: Floats | None = None,
    lse: Floats | None = None,
) -> Result:
    """Attention of a batch.

    q [token_num, num_heads, head_dim], k [key_num, num_kv_heads, head_dim], v [key_num,
    num_kv_heads, head_dim_v]. `out` and `lse` are what stood there before (zeros when left out).
    """
    rows, heads = len(q), batch.num_heads
    result = Result(
        np.zeros((rows, heads, batch.head_dim_v)) if out is None else out.copy(),
        np.zeros((heads, rows)) if lse is None else lse.copy(),
    )
    cu_q, cu_k = batch.cu_q_len, batch.cu_k_len
    for b in range(len(batch.q_lens)):
        if batch.is_finished(b):
            continue
        own, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        seen = visible(batch.q_lens[b], batch.k_lens[b], batch.causal, batch.window)
        for head in range(heads):
            kv_head = head // batch.group_size
            scores = q[own, head] @ k[keys, kv_head].T * batch.softmax_scale
            p, row_lse = _softmax(np.where(seen, scores, -np.inf), batch.sink(head))
            result.out[own, head] = p @ v[keys, kv_head]
            result.lse[head, own] = row_lse
    return result


def to_bits(values: NDArray[np.float32], dtype: str) -> Bits:
    """float32 rounded to nearest even f16 or bf16, as bits."""
    if dtype == "f16":
        return values.astype(np.float16).view(np.uint16)
    wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(bits: Bits, dtype: str) -> Floats:
    """The values that f16 or bf16 bits stand for."""
    if dtype == "f16":
        return np.ascontiguousarray(bits).view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _softmax(scores: Floats, sink: float) -> tuple[Floats, Floats]:
    """Probabilities and log-sum-exp of each row; 0 and -inf where nothing is above -inf."""
    top = scores.max(axis=1, initial=-np.inf, keepdims=True)
    top = np.where(np.isneginf(top), top, np.maximum(top, sink))
    base = np.where(np.isneginf(top), 0.0, top)
    exponentials = np.exp(scores - base)
    total = exponentials.sum(axis=1, keepdims=True)
    total += np.where(np.isneginf(top), 0.0, np.exp(sink - base))
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, top + np.log(total), -np.inf)
    return exponentials / np.where(total > 0, total, 1.0), lse[:, 0]
