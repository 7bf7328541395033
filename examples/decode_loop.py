# SPDX-License-Identifier: Apache-2.0
"""A serving loop over an int8 KV cache, checked against float64: a shared prefix, prompts in
chunks, and steps of four speculated tokens, replayed from one CUDA graph as sequences grow."""

from functools import partial

import torch

from attn_runtime import Attention, KVCache

HEADS, KV_HEADS, HEAD_DIM, DRAFT, MOST_KEYS = 32, 8, 128, 4, 2048
cache = KVCache(block_count=512, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, kv_dtype="int8")
attention = partial(
    Attention, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, kv_dtype="int8"
)
prefill, decode = attention(), attention(mode="decode")


def rows(tokens: int) -> list[torch.Tensor]:
    """Stands in for a model: q, k and v of some tokens."""
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(tokens, n, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for n in heads]


# Prompts, 256 tokens at a time: each chunk goes into the cache and attends to all before it.
prompts = {"system": 512, "a": 900, "b": 700, "c": 1500}  # "system" is how the others begin
for name, length in prompts.items():
    if name != "system":
        cache.share_prefix("system", name)  # nothing is copied or computed again
    while (left := length - cache.length(name)) > 0:
        q, k, v = rows(min(256, left))
        prefill(q, **cache.append([name], k, v, [len(q)]))

# A graph keeps addresses, and bounds in place of lengths: arrays of its own for what changes.
batch = ["a", "b", "c"]
q, k_new, v_new = rows(DRAFT * len(batch))
cu_k_len = torch.zeros(len(batch) + 1, device="cuda", dtype=torch.int32)
table = torch.zeros(len(batch), MOST_KEYS // cache.block_len, device="cuda", dtype=torch.int32)
bounds = {"max_q_len": DRAFT, "max_k_len": MOST_KEYS}
size = decode.workspace_size(token_num=len(q), batch_size=len(batch), **bounds)
step = {
    **cache.pools,
    **{"q": q, "k_new": k_new, "v_new": v_new, "block_table": table, "cu_k_len": cu_k_len},
    "cu_q_len": torch.arange(0, len(q) + 1, DRAFT, device="cuda", dtype=torch.int32),
    "workspace": torch.empty(size, device="cuda", dtype=torch.uint8),
    "out": torch.empty_like(q),
    **bounds,
}
decode.prepare()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    decode(**step)  # writes the new rows into the cache, and attends to them and all before

for accepted in (4, 1, 3, 2, 4):  # how many of four tokens the model agrees with
    for own, new in zip((q, k_new, v_new), rows(len(q)), strict=True):
        own.copy_(new)
    call = cache.append(batch, k_new, v_new, [DRAFT] * len(batch), write=False)
    cu_k_len.copy_(call["cu_k_len"])
    table[:, : call["block_table"].shape[1]] = call["block_table"]
    graph.replay()
    lengths = [cache.length(name) for name in batch]
    for name in batch:
        cache.truncate(name, cache.length(name) - DRAFT + accepted)

# The last step against the formula, over what the cache holds: code * scale + zero.
codes = {name: pool.double() for name, pool in cache.pools.items()}
keys, values = (
    codes[x] * codes[f"{x}_pairs"][..., :1] + codes[f"{x}_pairs"][..., 1:] for x in "kv"
)
for i, (name, length) in enumerate(zip(batch, lengths, strict=True)):
    own = [pool[table[i]].flatten(0, 1)[:length] for pool in (keys, values)]
    k, v = (pool.repeat_interleave(HEADS // KV_HEADS, 1) for pool in own)
    queries = slice(DRAFT * i, DRAFT * (i + 1))
    scores = torch.einsum("qhd,khd->hqk", q[queries].double(), k) / HEAD_DIM**0.5
    hidden = torch.ones(DRAFT, length, dtype=torch.bool, device="cuda").triu(length - DRAFT + 1)
    exact = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
    error = (step["out"][queries] - exact).abs().max()
    print(f"{name}, {length} keys: largest error {error:.1e}")
