# SPDX-License-Identifier: Apache-2.0
"""More sequences, and more heads, than 16 bits count, as the y and z axes of a grid do."""

from __future__ import annotations

import pytest
from harness import attention_for, ints

from attn_codegen.config import AttentionConfig
from attn_runtime.plan import SplitPolicy
from cases import batch_for, kernel_of
from reference_torch import DTYPES, torch

pytestmark = pytest.mark.gpu

MANY = 70_001
NAMES = (
    "prefill_sm80_bf16_d64_linear_causal",
    "prefill_sm90_bf16_d64_linear_causal",
    "prefill_sm90_bf16_d64_paged_causal",
    "decode_sm80_bf16_d64_paged_causal",
)
every_kernel = pytest.mark.parametrize("name", NAMES)


def rows_that_see_themselves(name: str, sequences: int, heads: int) -> None:
    """Each query sees one key, its own: out is V, bit for bit."""
    config = AttentionConfig.parse(name)
    if torch.cuda.get_device_capability() != (9, 0) and "sm90" in name:
        pytest.skip("needs a device of compute capability 9.0")
    batch = batch_for(
        kernel_of(name), [1] * sequences, [1] * sequences, num_heads=heads, num_kv_heads=heads
    )
    dtype = DTYPES[config.dtype.value]
    q, k, v = (
        torch.randn(sequences, heads, config.head_dim, device="cuda").to(dtype) for _ in range(3)
    )
    cache = {"k": k, "v": v}
    if config.cache == "paged":
        blocks = {name: rows[:, None] for name, rows in cache.items()}  # of one token
        cache = blocks | {"block_table": ints(range(sequences))[:, None]}
    lens = ints(range(sequences + 1))
    attn = attention_for(config, batch, SplitPolicy.off())
    bounds = {"max_q_len": 1, "max_k_len": 1}
    out, lse = attn(q=q, cu_q_len=lens, cu_k_len=lens, return_lse=True, **cache, **bounds)
    assert torch.equal(out, v)
    scores = (q.double() * k.double()).sum(-1) / config.head_dim**0.5
    assert torch.allclose(lse.double(), scores.T, atol=1e-4)


@every_kernel
def test_seventy_thousand_sequences_are_right(name: str) -> None:
    rows_that_see_themselves(name, MANY, 1)


@every_kernel
def test_seventy_thousand_heads_are_right(name: str) -> None:
    rows_that_see_themselves(name, 3, MANY)
