# SPDX-License-Identifier: Apache-2.0
"""Prefill in a ring, its ranks simulated on one GPU one after another."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from ranks import Replay

from attn_runtime import ContextParallel
from attn_runtime.ring import RingAttention
from criterion import complaints, lse_limit
from reference import Batch
from reference_torch import TorchResult, attention, attention_at_input_precision, torch

pytestmark = pytest.mark.gpu

LENS = [(1000,), (257, 64, 3, 700)]


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("mask", "window"), [("causal", 0), ("full", 0), ("causal", 100)])
def test_a_ring_of_any_size_gives_the_whole_attention(
    arch: str, size: int, mask: str, window: int
) -> None:
    if arch == "sm90" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    lens = LENS[size % 2]
    batch = Batch(lens, lens, 8, 2, 128, 128, mask == "causal", window)
    q, k, v = (torch.randn(sum(lens), heads, 128, device="cuda").bfloat16() for heads in (8, 2, 2))
    got = run_ring(size, lens, (q, k, v), mask=mask, window_size=window, arch=arch)
    exact = attention(batch, q, k, v)
    rounded = attention_at_input_precision(batch, q, k, v)
    found = complaints(batch, "bf16", got, exact, rounded, lse_limit(batch, q, k))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize(
    "cut", [{"sharding": "interleaved", "chunk": 40}, {"sharding": "contiguous"}]
)
def test_pieces_of_a_ring_lie_as_the_keys_of_a_cache_do(size: int, cut: dict[str, Any]) -> None:
    lens = LENS[1]
    batch = Batch(lens, lens, 8, 2, 128, 128, True)
    q, k, v = (torch.randn(sum(lens), heads, 128, device="cuda").bfloat16() for heads in (8, 2, 2))
    got = run_ring(size, lens, (q, k, v), **cut)
    exact = attention(batch, q, k, v)
    rounded = attention_at_input_precision(batch, q, k, v)
    found = complaints(batch, "bf16", got, exact, rounded, lse_limit(batch, q, k))
    assert not found, "\n".join(found)
    group = ContextParallel(Replay(size, 1, {}), **cut)
    own = RingAttention(Replay(size, 1, {}), num_heads=8, num_kv_heads=2, head_dim=128, **cut)
    starts = [0, *accumulate(lens)]
    keys = [a + t for a, length in zip(starts, lens, strict=False) for t in group.positions(length)]
    assert own.layout(lens).tokens() == keys


def run_ring(size, lens, arrays, **settings):  # type: ignore[no-untyped-def]
    """out and lse of all tokens, from the ranks' own."""
    shape = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 128}
    parts: dict[int, torch.Tensor] = {}
    rings = [RingAttention(Replay(size, rank, parts), **shape, **settings) for rank in range(size)]
    q, k, v = arrays
    out, lse = torch.zeros_like(q), torch.zeros(8, len(q), device="cuda")
    for _ in range(2):
        for ring in rings:
            own = torch.tensor(ring.layout(lens).tokens(), device="cuda", dtype=torch.int64)
            out[own], lse[:, own] = ring(q[own], k[own], v[own], lens=lens, return_lse=True)
            ring.group.wait()
    return TorchResult(out, lse)
