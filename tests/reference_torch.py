# SPDX-License-Identifier: Apache-2.0
"""The oracle on a torch device: attention in float64, and in the precision of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest

from reference import Batch, Bits, visible_range

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="needs torch: it is not installed")

__all__ = [
    "DTYPES",
    "TorchResult",
    "attention",
    "attention_at_input_precision",
    "from_bits",
    "torch",
]

SCORES_AT_ONCE = 2**27
"""Elements of the largest matrix of scores that is held at a time (1 GiB in float64)."""

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class TorchResult(NamedTuple):
    """out [token_num, num_heads, head_dim_v], lse [num_heads, token_num]; unwritten rows are 0."""

    out: torch.Tensor
    lse: torch.Tensor


class Chunk(NamedTuple):
    """Some heads of one KV head, and some rows, of one sequence."""

    heads: slice
    kv_head: int
    rows: slice
    keys: slice
    first: torch.Tensor
    end: torch.Tensor


def from_bits(bits: Bits, dtype: str, device: str) -> torch.Tensor:
    """16-bit patterns as a tensor of their type."""
    return torch.from_numpy(bits.view("int16")).to(device).view(DTYPES[dtype])


def attention(batch: Batch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> TorchResult:
    """reference.attention in float64, over q, k, v of any type, heads and rows in chunks."""
    result = _empty(batch, q, torch.float64)
    wide = q.double(), k.double(), v.double()
    for chunk in _chunks(batch, q.device):
        query, key, value = _operands(chunk, *wide)
        scores = query @ key * batch.softmax_scale
        scores.masked_fill_(_hidden(chunk, scores), -torch.inf)
        lse = torch.logsumexp(_with_sinks(batch, chunk, scores), dim=-1)
        p = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
        result.out[chunk.rows, chunk.heads] = (p @ value).transpose(0, 1)
        result.lse[chunk.heads, chunk.rows] = lse
    return result


def attention_at_input_precision(
    batch: Batch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """What plain torch gives in the type of q: 16-bit products (added up in float32), softmax in
    float32 cast to 16 bits. The error of a kernel is measured against the error of this."""
    out = _empty(batch, q, q.dtype).out
    for chunk in _chunks(batch, q.device):
        query, key, value = _operands(chunk, q, k, v)
        scores = (query @ key).float() * batch.softmax_scale
        scores.masked_fill_(_hidden(chunk, scores), -torch.inf)
        p = torch.softmax(_with_sinks(batch, chunk, scores), dim=-1)
        p = p[..., : scores.shape[-1]].nan_to_num().to(q.dtype)
        out[chunk.rows, chunk.heads] = (p @ value).transpose(0, 1)
    return out


def _empty(batch: Batch, q: torch.Tensor, dtype: torch.dtype) -> TorchResult:
    heads, rows = batch.num_heads, q.shape[0]
    out = torch.zeros(rows, heads, batch.head_dim_v, dtype=dtype, device=q.device)
    return TorchResult(out, torch.zeros(heads, rows, dtype=dtype, device=q.device))


def _chunks(batch: Batch, device: torch.device) -> Iterator[Chunk]:
    cu_q, cu_k = batch.cu_q_len.tolist(), batch.cu_k_len.tolist()
    group = batch.group_size
    for b, (q_len, k_len) in enumerate(zip(batch.q_lens, batch.k_lens, strict=True)):
        if batch.is_finished(b) or not q_len:
            continue
        limits = visible_range(q_len, k_len, batch.causal, batch.window)
        first, end = (torch.from_numpy(limit).to(device) for limit in limits)
        step = max(1, SCORES_AT_ONCE // (group * max(k_len, 1)))
        for begin in range(0, q_len, step):
            own = slice(begin, min(begin + step, q_len))
            rows = slice(cu_q[b] + own.start, cu_q[b] + own.stop)
            for kv_head in range(batch.num_kv_heads):
                heads = slice(kv_head * group, (kv_head + 1) * group)
                keys = slice(cu_k[b], cu_k[b + 1])
                yield Chunk(heads, kv_head, rows, keys, first[own], end[own])


def _operands(
    chunk: Chunk, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q [heads, rows, head_dim], K^T [head_dim, keys], V [keys, head_dim_v] of a chunk."""
    query = q[chunk.rows, chunk.heads].transpose(0, 1)
    return query, k[chunk.keys, chunk.kv_head].T, v[chunk.keys, chunk.kv_head]


def _with_sinks(batch: Batch, chunk: Chunk, scores: torch.Tensor) -> torch.Tensor:
    """Scores [heads, rows, keys] with the sink as one more key, of rows that see any."""
    if not batch.sinks:
        return scores
    sinks = torch.tensor(batch.sinks[chunk.heads], dtype=scores.dtype, device=scores.device)
    column = sinks[:, None].expand(scores.shape[:2])
    sees_any = (chunk.first < chunk.end)[None, :]
    column = torch.where(sees_any, column, -torch.inf)
    return torch.cat([scores, column[..., None]], dim=-1)


def _hidden(chunk: Chunk, scores: torch.Tensor) -> torch.Tensor:
    """[rows, keys] where a query does not see a key."""
    key = torch.arange(scores.shape[-1], device=scores.device)[None, :]
    return (key < chunk.first[:, None]) | (key >= chunk.end[:, None])
