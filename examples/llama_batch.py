# SPDX-License-Identifier: Apache-2.0
"""Attention for a Llama-shaped batch over a paged KV cache, checked against float64."""

import torch

from attn_runtime import Attention

q_lens, k_lens = [700, 1, 64], [700, 3000, 1500]  # a prompt, a decode step, a chunk of a prompt
cu_q = torch.tensor([0, *q_lens], device="cuda").cumsum(0).int()
cu_k = torch.tensor([0, *k_lens], device="cuda").cumsum(0).int()
q = torch.randn(sum(q_lens), 32, 128, device="cuda", dtype=torch.bfloat16)
k, v = torch.randn(2, 256, 64, 8, 128, device="cuda", dtype=torch.bfloat16)  # 256 blocks of 64
table = torch.randperm(256, device="cuda").int()[: 3 * 47].view(3, 47)  # 47 blocks a sequence

attention = Attention(num_heads=32, num_kv_heads=8, head_dim=128)  # bf16, paged, causal
out = attention(q, k, v, cu_q_len=cu_q, cu_k_len=cu_k, block_table=table)

for i, (n, m) in enumerate(zip(q_lens, k_lens, strict=True)):
    keys, values = (pool[table[i]].flatten(0, 1)[:m].double() for pool in (k, v))
    keys, values = (rows.repeat_interleave(4, 1) for rows in (keys, values))  # 4 heads share one
    rows = slice(cu_q[i], cu_q[i + 1])
    scores = torch.einsum("qhd,khd->hqk", q[rows].double(), keys) / 128**0.5
    hidden = torch.ones(n, m, dtype=torch.bool, device="cuda").triu(m - n + 1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    exact = torch.einsum("hqk,khd->qhd", weights, values)
    print(f"{n} queries, {m} keys: largest error {(out[rows] - exact).abs().max():.1e}")
