# SPDX-License-Identifier: Apache-2.0
"""Quantised caches spread over ranks, simulated on one GPU: as on one rank, in rounds or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import same_bits
from kv_harness import DEVICE, Layout, Rows, draw_rows, ints, kept, scales_of, upload
from ranks import Replay

from attn_codegen.config import AttentionConfig, Cache, KvDtype, Mode
from attn_runtime import Attention, ContextParallel
from reference import Batch, cumulated, to_bits
from reference_torch import from_bits, torch

pytestmark = pytest.mark.gpu

RANKS, HEADS, KV_HEADS, WIDTH = 3, 16, 4, 128
QUANTISED = [kv for kv in KvDtype if kv is not KvDtype.SAME]
CONFIGS = [
    AttentionConfig.of(mode=mode, dtype="bf16", kv_dtype=kv, head_dim=WIDTH, cache=cache)
    for mode in (Mode.DECODE, Mode.PREFILL)
    for kv in QUANTISED
    for cache in Cache
]


class Spread:
    """A problem over one cache of all keys, and over caches of those of each rank."""

    def __init__(self, config: AttentionConfig) -> None:
        q_lens = (8, 1, 3) if config.mode is Mode.DECODE else (140, 1, 33)
        self.config = config
        self.batch = Batch(q_lens, (700, 2, 40), HEADS, KV_HEADS, WIDTH, WIDTH, True)
        rng = np.random.default_rng(3)
        shape = (self.batch.token_num, HEADS, WIDTH)
        bits = to_bits(rng.standard_normal(shape).astype(np.float32), "bf16")
        self.q = from_bits(bits, "bf16", DEVICE)
        self.scales = (scales_of(config, KV_HEADS, True), 3 * scales_of(config, KV_HEADS, True))
        self.rows: list[Rows] = []
        self.largest = 0.0  # of V
        for scale in self.scales:
            drawn = draw_rows(rng, self.batch.key_num, KV_HEADS, WIDTH, "bf16")
            rows, values = kept(config, drawn, scale)
            self.rows.append(rows)
            self.largest = float(np.abs(values).max())

    def run(self, group: ContextParallel | None = None) -> Any:
        """Output of one rank, or of the only one."""
        config, batch = self.config, self.batch
        rows, local = self.rows, batch
        if group is not None:
            keys = zip(batch.cu_k_len, batch.k_lens, strict=False)
            own = np.concatenate([begin + group.positions(length) for begin, length in keys])
            local = replace(batch, k_lens=tuple(group.local_lens(batch.k_lens)))
            rows = [one.of(own) for one in rows]
        scales = self.scales if config.kv_dtype is KvDtype.E4M3 else None
        cache = upload(config, local, rows[0], rows[1], Layout(), scales)
        call = cache.call
        if group is not None and config.cache is Cache.LINEAR:
            call["cu_rows"] = ints(cumulated(local.k_lens))
        attn = Attention(
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=WIDTH,
            kv_dtype=config.kv_dtype,
            cache=config.cache or Cache.PAGED,
            mode=config.mode,
            split="off",
            arch=config.arch,
            context_parallel=group,
        )
        out = attn(
            self.q,
            cu_q_len=ints(batch.cu_q_len),
            cu_k_len=ints(batch.cu_k_len),
            max_q_len=max(batch.q_lens),
            max_k_len=max(batch.k_lens),
            **call,
        )
        torch.cuda.synchronize()  # `cache` is in use until then
        return out

    def of_ranks(self, rounds: int) -> Any:
        """The output of the last rank, once it has been given the parts of the others."""
        parts: dict[Any, Any] = {}
        for _ in range(2):
            for rank in range(RANKS):
                replay = Replay(RANKS, rank, parts)
                out = self.run(ContextParallel(replay, rounds=rounds))
        return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_ranks_give_what_one_has_and_rounds_the_same_bits(config: AttentionConfig) -> None:
    """Probabilities and outputs are rounded to 8 bits, relative to other references on each rank:
    an output, which is a mean of V, is off by at most 4 * 2^-8 of the largest element."""
    spread = Spread(config)
    alone, together = spread.run(), spread.of_ranks(1)
    difference = (alone.float() - together.float()).abs().max().item()
    assert difference <= 4 * 2.0**-8 * spread.largest
    assert same_bits(together, spread.of_ranks(2))
