# SPDX-License-Identifier: Apache-2.0
"""Attention as an operator of torch: torch.compile keeps it in the graph of a layer, between the
projections that it compiles. Checked against float64."""

import torch

from attn_runtime import Attention

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 32, 8, 128, 4096
attention = Attention(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, mode="decode")


def decode(
    q: torch.Tensor,  # [token_num, heads, head_dim]
    k: torch.Tensor,  # [block_count, block_len, kv_heads, head_dim]
    v: torch.Tensor,
    block_table: torch.Tensor,  # [batch_size, max_blocks]
    cu_q_len: torch.Tensor,  # [batch_size + 1]
    cu_k_len: torch.Tensor,
    max_k_len: int,
) -> torch.Tensor:
    """What attn_runtime computes; torch is told its arguments and the shape of its result."""
    lengths = {"cu_q_len": cu_q_len, "cu_k_len": cu_k_len, "max_k_len": max_k_len}
    out: torch.Tensor = attention(q, k, v, block_table=block_table, **lengths)
    return out


operator = torch.library.custom_op("example::decode", decode, mutates_args=())
operator.register_fake(lambda q, *_: torch.empty_like(q))


def layer(x: torch.Tensor, weight: torch.Tensor, *cache: torch.Tensor) -> torch.Tensor:
    """One token of each sequence, over a cache that has its keys already."""
    q = torch.nn.functional.silu(x) @ weight
    return 2 * operator(q.view(-1, HEADS, HEAD_DIM), *cache, 2048).flatten(1)


k_lens = [900, 64, 2000]
options = {"device": "cuda", "dtype": torch.bfloat16}
x = torch.randn(len(k_lens), WIDTH, **options)
weight = torch.randn(WIDTH, HEADS * HEAD_DIM, **options) / WIDTH**0.5
k, v = torch.randn(2, 128, 64, KV_HEADS, HEAD_DIM, **options)  # 128 blocks of 64
table = torch.randperm(128, device="cuda").int()[: 3 * 32].view(3, 32)
cu_q = torch.arange(len(k_lens) + 1, device="cuda", dtype=torch.int32)
cu_k = torch.tensor([0, *k_lens], device="cuda").cumsum(0).int()

compiled = torch.compile(layer, fullgraph=True)  # it would be refused where the graph broke
out = compiled(x, weight, k, v, table, cu_q, cu_k)

q = (torch.nn.functional.silu(x) @ weight).view(-1, HEADS, HEAD_DIM).double()
for i, length in enumerate(k_lens):
    keys, values = (pool[table[i]].flatten(0, 1)[:length].double() for pool in (k, v))
    keys, values = (rows.repeat_interleave(HEADS // KV_HEADS, 1) for rows in (keys, values))
    weights = (torch.einsum("hd,khd->hk", q[i], keys) / HEAD_DIM**0.5).softmax(-1)
    exact = 2 * torch.einsum("hk,khd->hd", weights, values).flatten()
    print(f"{length} keys: largest error {(out[i] - exact).abs().max():.1e}")
