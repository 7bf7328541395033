# SPDX-License-Identifier: Apache-2.0
"""A decode call that brings new rows along against a cache writer and then the same call: the same
bits in the output and in every byte of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from kv_harness import (
    DEVICE,
    CacheOnDevice,
    Layout,
    draw_rows,
    ints,
    kept,
    new_keys,
    new_rows,
    scales_of,
    upload,
)

from attn_codegen.config import AttentionConfig, Cache, Dtype, KvDtype, Mode
from attn_codegen.rules import is_valid
from attn_runtime import Attention, KVCache
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.plan import SplitPolicy
from attn_runtime.problem import SplitKind
from layouts import LinearStyle, PagedStyle
from reference import Batch
from reference_torch import DTYPES, torch

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
HEAD_DIMS = (64, 256, 192, 32, 96)
TASKS = 6
LEAST_TILE_ROWS = 8
"""Of the smallest decode tile, the only one of some configurations."""
SPLITS = (
    SplitPolicy.heuristic(),
    SplitPolicy.heuristic(),
    SplitPolicy.off(),
    SplitPolicy.fixed(5),
    SplitPolicy.fixed_size(128),
)


def configs() -> list[AttentionConfig]:
    """Each element type and cache, at widths that take turns."""
    found = []
    for index, (dtype, kv_dtype, cache) in enumerate(
        (d, k, c) for d in Dtype for k in KvDtype for c in Cache
    ):
        for head_dim in (128, HEAD_DIMS[index % len(HEAD_DIMS)]):
            config = AttentionConfig.of(
                mode=Mode.DECODE, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, cache=cache
            )
            found += [config] if is_valid(config) else []
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Two caches that lack the rows of the new tokens, and the arguments of calls on them."""

    caches: tuple[CacheOnDevice, CacheOnDevice]
    rows: dict[str, torch.Tensor]
    lengths: dict[str, torch.Tensor]
    q: torch.Tensor
    bounds: dict[str, int]


def stage(config: AttentionConfig, batch: Batch, layout: Layout, rng: Any) -> Stage:
    heads, dtype = batch.num_kv_heads, config.dtype.value
    values = [draw_rows(rng, batch.key_num, heads, config.head_dim, dtype) for _ in range(2)]
    per_head = bool(rng.integers(2))
    scales = [factor * scales_of(config, heads, per_head) for factor in (1, 2)]
    finished = list(batch.finished) or [False] * len(batch.q_lens)
    absent = new_keys(batch, [False] * len(finished))
    rows = [kept(config, *each)[0].without(absent) for each in zip(values, scales, strict=True)]
    is_e4m3 = config.kv_dtype is KvDtype.E4M3
    first, second = (
        upload(config, batch, *rows, layout, (scales[0], scales[1]) if is_e4m3 else None)
        for _ in range(2)
    )
    lengths = {"cu_q_len": ints(batch.cu_q_len), "cu_k_len": ints(batch.cu_k_len)}
    if any(finished):
        lengths["finished"] = torch.tensor(finished, device=DEVICE)
    q = torch.randn(batch.token_num, batch.num_heads, config.head_dim, device=DEVICE)
    return Stage(
        (first, second),
        {
            name: new_rows(batch, value, rng, dtype)
            for name, value in zip(("k_new", "v_new"), values, strict=True)
        },
        lengths,
        q.to(DTYPES[dtype]),
        {"max_q_len": max(batch.q_lens), "max_k_len": max(batch.k_lens)},
    )


def random_batch(config: AttentionConfig, rng: np.random.Generator, task: int) -> Batch:
    """Groups wider than a tile and more query tokens than a tile has: several CTAs then write a
    row."""
    q_lens = [int(rng.choice([0, 1, 1, 1, 2, 5, 8])) for _ in range(rng.integers(1, 9))]
    q_lens[0] = q_lens[0] or 1
    prefixes = [int(rng.choice([-3, 0, 0, 1, 15, 16, 63, 100, 126, 1000, 4000])) for _ in q_lens]
    prefixes[0] = max(prefixes[0], 0)
    kv_heads = int(rng.choice([1, 2, 3]))
    return Batch(
        q_lens=tuple(q_lens),
        k_lens=tuple(max(0, a + b) for a, b in zip(q_lens, prefixes, strict=True)),
        num_heads=kv_heads * int(rng.choice([1, 4, 5, 8, 32])),
        num_kv_heads=kv_heads,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim,
        causal=True,
        window=int(rng.choice([0, 0, 1, 40])),
        finished=tuple(bool(rng.integers(4) == 0) for _ in q_lens) if task % 3 == 2 else (),
    )


def split_of(batch: Batch, split: SplitPolicy) -> SplitPolicy:
    """One with which a decode kernel takes calls with new rows and without: where nothing is asked
    for, those without may go to a prefill kernel, whose bits are others, from the rows on that no
    decode tile of the config may hold."""
    tokens = -(-batch.token_num // len(batch.q_lens))
    rows = batch.num_heads // batch.num_kv_heads * tokens
    is_free = split.kind is SplitKind.HEURISTIC
    return SplitPolicy.fixed(5) if is_free and rows > LEAST_TILE_ROWS else split


def attention_for(config: AttentionConfig, batch: Batch, split: SplitPolicy) -> Attention:
    return Attention(
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=config.head_dim,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        cache=config.cache or Cache.PAGED,
        window_size=batch.window,
        split=split,
        mode="decode",
    )


def writer_for(config: AttentionConfig, batch: Batch) -> CacheWriter:
    return CacheWriter(
        num_kv_heads=batch.num_kv_heads,
        head_dim=config.head_dim,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        cache=config.cache or Cache.PAGED,
    )


def outputs_of(made: Stage, batch: Batch) -> dict[str, torch.Tensor]:
    """Rows that no call writes hold the same in both."""
    out = torch.full_like(made.q, 7.0)
    return {"out": out, "lse": torch.full((batch.num_heads, len(out)), 7.0, device=DEVICE)}


def differences(
    made: Stage, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> list[str]:
    """Where appending left something else than writing and decoding."""
    found = [
        f"{name} differs in {int((bits_of(ours[name]) != bits_of(theirs[name])).sum())} words"
        for name in ours
        if not torch.equal(bits_of(ours[name]), bits_of(theirs[name]))
    ]
    for got, want in zip(*(cache.bits() for cache in made.caches), strict=True):
        wrong = np.flatnonzero(got != want)
        if len(wrong):
            found.append(
                f"cache: {len(wrong)} of {got.size} words differ, first at {wrong[0]}: "
                f"{got[wrong[0]]:#06x}, not {want[wrong[0]]:#06x}"
            )
    return found


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int16)


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.name)
def test_appending_leaves_what_the_writer_and_then_decode_leave(config: AttentionConfig) -> None:
    failures = []
    for task in range(TASKS):
        rng = np.random.default_rng([crc32(config.name.encode()), task])
        batch = random_batch(config, rng, task)
        layout = Layout(
            block_len=int(rng.choice([1, 7, 16, 64, 128])),
            linear_style=rng.choice(list(LinearStyle)),
            paged_style=rng.choice(list(PagedStyle)),
            seed=task,
        )
        split = split_of(batch, SPLITS[int(rng.integers(len(SPLITS)))])
        made = stage(config, batch, layout, rng)
        attn = attention_for(config, batch, split)
        ours, theirs = outputs_of(made, batch), outputs_of(made, batch)
        appended, written = (cache.call for cache in made.caches)
        attn(made.q, **appended, **made.rows, **made.lengths, **made.bounds, **ours)
        writer_for(config, batch)(**written, **made.rows, **made.lengths)
        attn(made.q, **written, **made.lengths, **made.bounds, **theirs)
        found = differences(made, ours, theirs)
        if found:
            failures.append("\n    ".join([f"task {task}: {batch} {layout} {split}", *found]))
    if failures:
        pytest.fail(f"{len(failures)} of {TASKS} tasks, first:\n" + "\n".join(failures[:3]), False)


@pytest.mark.parametrize("kv_dtype", list(KvDtype))
def test_replays_of_one_graph_append_a_token_each(kv_dtype: KvDtype) -> None:
    """The lengths on the device grow between replays, within the bounds of the captured call."""
    heads, width, steps, prefix = 2, 128, 70, [61, 0, 500]
    lens = torch.tensor(prefix, device=DEVICE)
    rows = torch.randn(steps, 3, len(prefix), heads, width, device=DEVICE).bfloat16()
    caches = [
        KVCache(
            block_count=64,
            num_kv_heads=heads,
            head_dim=width,
            block_len=16,
            kv_dtype=kv_dtype,
        )
        for _ in range(2)
    ]
    old = torch.randn(sum(prefix), heads, width, device=DEVICE).bfloat16()
    for cache in caches:
        for array in cache.pools.values():
            array.zero_()
        cache.append("abc", old, old, prefix)
        room = torch.zeros(3 * steps, heads, width, device=DEVICE).bfloat16()
        cache.append("abc", room, room, [steps] * 3, write=False)  # blocks for all steps
    attn = Attention(
        num_heads=8, num_kv_heads=heads, head_dim=width, kv_dtype=kv_dtype, mode="decode"
    )
    attn.prepare()
    q, k_new, v_new = (torch.empty_like(rows[0, 0]) for _ in range(3))
    q = q.repeat(1, 4, 1)
    sums = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    call = {"cu_q_len": ints([0, 1, 2, 3]), "cu_k_len": sums, "max_q_len": 1, "max_k_len": 600}
    ours, theirs = (cache.arguments("abc") for cache in caches)
    graph, out = torch.cuda.CUDAGraph(), torch.empty_like(q)
    with torch.cuda.graph(graph):
        attn(q, **ours, **call, k_new=k_new, v_new=v_new, out=out)
    for step in range(steps):
        sums[1:] = torch.cumsum(lens + step + 1, 0)
        q.copy_(rows[step, 0].repeat(1, 4, 1))
        k_new.copy_(rows[step, 1])
        v_new.copy_(rows[step, 2])
        graph.replay()
        lengths = {"cu_q_len": call["cu_q_len"], "cu_k_len": sums}
        caches[1].writer(k_new, v_new, **theirs, **lengths)
        assert torch.equal(out, attn(q, **theirs, **call)), f"step {step}"
    for name, pool in caches[0].pools.items():
        assert torch.equal(pool, caches[1].pools[name]), name
