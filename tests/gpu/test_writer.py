# SPDX-License-Identifier: Apache-2.0
"""Cache writers against the quantiser in numpy: every byte of every cache, poison included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from kv_harness import (
    DEVICE,
    CacheOnDevice,
    Layout,
    Rows,
    draw_rows,
    ints,
    kept,
    new_keys,
    new_rows,
    scales_of,
    upload,
)
from ranks import Replay

from attn_codegen.config import AttentionConfig, Cache, Dtype, KvDtype, Mode
from attn_codegen.rules import is_valid
from attn_runtime import ContextParallel, driver
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.kernel import load
from attn_runtime.write_call import write_grid
from layouts import LinearStyle, PagedStyle
from quantiser import e4m3_codes
from reference import Batch, Bits, from_bits
from reference_torch import DTYPES, torch

pytestmark = pytest.mark.gpu

HEAD_DIMS = (64, 128, 16, 32, 80, 96, 192, 256)
TASKS = 6


def configs() -> list[AttentionConfig]:
    """Each element type and cache, at widths that take turns."""
    found = []
    for index, (dtype, kv_dtype, cache) in enumerate(
        (d, k, c) for d in Dtype for k in KvDtype for c in Cache
    ):
        for head_dim in dict.fromkeys((128, *(HEAD_DIMS[(index + i) % 8] for i in (0, 3)))):
            config = AttentionConfig.of(
                mode=Mode.WRITE, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, cache=cache
            )
            found += [config] if is_valid(config) else []
    return [*found, AttentionConfig.parse("write_sm80_bf16_d192_v128_paged")]


def writer_of(
    config: AttentionConfig, heads: int, group: ContextParallel | None = None
) -> CacheWriter:
    return CacheWriter(
        num_kv_heads=heads,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        cache=config.cache,
        context_parallel=group,
    )


def batch_of(config: AttentionConfig, q_lens: list[int], k_lens: list[int], heads: int) -> Batch:
    return Batch(
        q_lens=tuple(q_lens),
        k_lens=tuple(k_lens),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v,
        causal=True,
    )


def lens(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    q_lens = [int(rng.choice([0, 1, 1, 2, 5, 17, 64, 130])) for _ in range(rng.integers(1, 9))]
    prefixes = [int(rng.choice([0, 0, 1, 15, 16, 63, 100])) for _ in q_lens]
    return q_lens, [a + b for a, b in zip(q_lens, prefixes, strict=True)]


def written(
    config: AttentionConfig,
    batch: Batch,
    layout: Layout,
    rng: np.random.Generator,
    finished: list[bool],
    per_head: bool = False,
    group: ContextParallel | None = None,
) -> tuple[CacheOnDevice, list[Bits], dict[str, Any]]:
    """A cache that has been written to, what it must hold, and the arguments of the call. With a
    group, the cache is that of its rank."""
    heads, dtype = batch.num_kv_heads, config.dtype.value
    values = [
        draw_rows(rng, batch.key_num, heads, width, dtype)
        for width in (config.head_dim, config.head_dim_v)
    ]
    scales = None
    if config.kv_dtype is KvDtype.E4M3:
        scales = scales_of(config, heads, per_head), 2 * scales_of(config, heads, per_head)
    ones = np.ones(heads, np.float32)
    rows: list[Rows] = [
        kept(config, value, scales[i] if scales else ones)[0] for i, value in enumerate(values)
    ]
    absent = new_keys(batch, [False] * len(finished))
    skipped = absent & ~new_keys(batch, finished)
    local, own = (batch, np.arange(batch.key_num)) if group is None else shard(batch, group)
    before, after = ([r.without(keys).of(own) for r in rows] for keys in (absent, skipped))
    cache = upload(config, local, *before, layout, scales)
    expected = upload(config, local, *after, layout, scales).bits()
    call = cache.call | {
        "k_new": new_rows(batch, values[0], rng, dtype, behind=3),
        "v_new": new_rows(batch, values[1], rng, dtype, behind=3),
        "cu_q_len": ints(batch.cu_q_len),
        "cu_k_len": ints(batch.cu_k_len),
    }
    if any(finished):
        call["finished"] = torch.tensor(finished, device=DEVICE)
    if group is not None and config.cache is Cache.LINEAR:
        call["cu_rows"] = ints(local.cu_k_len)
    writer_of(config, heads, group)(**call)
    return cache, expected, call


def shard(batch: Batch, group: ContextParallel) -> tuple[Batch, np.ndarray]:
    """The lengths of what a rank has, and which of all keys these are."""
    keys = zip(batch.cu_k_len, batch.k_lens, strict=False)
    own = [begin + group.positions(length) for begin, length in keys]
    local = replace(batch, k_lens=tuple(group.local_lens(batch.k_lens)))
    return local, np.concatenate(own).astype(np.int64)


def check(cache: CacheOnDevice, expected: list[Bits], note: str) -> None:
    for got, want in zip(cache.bits(), expected, strict=True):
        wrong = np.flatnonzero(got != want)
        assert not len(wrong), (
            f"{note}: {len(wrong)} of {got.size} words differ, first at {wrong[0]}: "
            f"{got[wrong[0]]:#06x}, not {want[wrong[0]]:#06x}"
        )


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.name)
def test_every_byte_of_the_cache_is_what_the_quantiser_says(config: AttentionConfig) -> None:
    for task in range(TASKS):
        rng = np.random.default_rng([crc32(config.name.encode()), task])
        q_lens, k_lens = lens(rng)
        heads = int(rng.choice([1, 2, 3, 8]))
        finished = [bool(task % 2 and rng.integers(4) == 0) for _ in q_lens]
        layout = Layout(
            block_len=int(rng.choice([1, 7, 16, 64, 128])),
            linear_style=rng.choice(list(LinearStyle)),
            paged_style=rng.choice(list(PagedStyle)),
            seed=task,
        )
        batch = batch_of(config, q_lens, k_lens, heads)
        cache, expected, call = written(config, batch, layout, rng, finished, bool(task % 3))
        note = f"task {task}: {q_lens} of {k_lens}, {heads} heads, {layout}, finished {finished}"
        check(cache, expected, note)
        writer_of(config, heads)(**call)
        check(cache, expected, f"{note}, written twice")


@pytest.mark.parametrize("cache", list(Cache))
@pytest.mark.parametrize("kv_dtype", list(KvDtype))
def test_ranks_write_their_own_of_all_new_keys(kv_dtype: KvDtype, cache: Cache) -> None:
    config = AttentionConfig.of(mode=Mode.WRITE, dtype="bf16", kv_dtype=kv_dtype, cache=cache)
    batch = batch_of(config, [1, 40, 0, 3, 2], [300, 40, 9, 3, 1], 2)
    finished = [False, False, False, True, False]
    for size in (2, 3, 8):
        for rank in range(size):
            for sharding, chunk in (("interleaved", 1), ("interleaved", 4), ("zigzag", 1)):
                group = ContextParallel(Replay(size, rank, {}), sharding=sharding, chunk=chunk)
                cache_, expected, _ = written(
                    config, batch, Layout(), np.random.default_rng(2), finished, group=group
                )
                check(cache_, expected, f"rank {rank} of {size}, {sharding} {chunk}")


@pytest.mark.parametrize("kv_dtype", ["same", "int8", "int4", "e4m3"])
def test_many_sequences_and_one_long_one(kv_dtype: str) -> None:
    config = AttentionConfig.of(mode="write", dtype="bf16", kv_dtype=kv_dtype, cache="paged")
    rng = np.random.default_rng(3)
    q_lens = [1] * 300 + [3000] + [0, 1] * 50
    k_lens = [q + int(rng.integers(40)) for q in q_lens]
    batch = batch_of(config, q_lens, k_lens, 2)
    cache, expected, _ = written(config, batch, Layout(64), rng, [False] * len(q_lens))
    check(cache, expected, kv_dtype)


@pytest.mark.parametrize("kv_dtype", ["same", "int4"])
def test_a_launch_of_more_ctas_than_the_device_holds_writes_every_row(kv_dtype: str) -> None:
    config = AttentionConfig.of(
        mode="write", dtype="bf16", kv_dtype=kv_dtype, head_dim=256, cache="paged"
    )
    batch = batch_of(config, [3001, 1, 998], [3001, 40, 1000], 8)
    context = driver.context_of_device(driver.current_device())
    kernel = load(config, context)
    held = context.device.sm_count * kernel.limits.ctas_per_sm
    assert write_grid(batch.token_num * 8, kernel.tiling.cta_q, held) > held
    rng = np.random.default_rng(8)
    cache, expected, _ = written(config, batch, Layout(64), rng, [False] * 3)
    check(cache, expected, kv_dtype)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_element_becomes_the_nearest_e4m3(dtype: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 1, 128)
    config = AttentionConfig.of(mode="write", dtype=dtype, kv_dtype="e4m3", cache="linear")
    tokens = len(bits)
    new = torch.from_numpy(bits.view(np.int16)).to(DEVICE).view(DTYPES[dtype])
    k, v = torch.zeros(2, tokens, 1, 128, dtype=torch.uint8, device=DEVICE)
    sums = ints([0, tokens])
    writer_of(config, 1)(new, new, k, v, cu_q_len=sums, cu_k_len=sums)
    with np.errstate(invalid="ignore"):
        expected = e4m3_codes(from_bits(bits, dtype).astype(np.float32))
    assert (k.cpu().numpy() == expected).all()
    assert (v.cpu().numpy() == expected).all()


def test_a_longer_new_part_than_the_sequence_writes_what_fits() -> None:
    config = AttentionConfig.of(mode="write", dtype="f16", kv_dtype="int8", cache="block")
    rng = np.random.default_rng(5)
    batch = batch_of(config, [9, 4], [5, 4], 2)
    cache, expected, _ = written(config, batch, Layout(4), rng, [False, False])
    check(cache, expected, "9 new tokens of a sequence of 5")


def test_a_call_can_be_captured_in_a_graph() -> None:
    config = AttentionConfig.of(mode="write", dtype="bf16", kv_dtype="int8", cache="paged")
    rng = np.random.default_rng(6)
    batch = batch_of(config, [3, 7], [30, 7], 2)
    cache, expected, call = written(config, batch, Layout(16), rng, [False, False])
    for name in ("k", "v", "k_pairs", "v_pairs"):
        call[name].zero_()
    before = cache.bits()
    write = writer_of(config, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        write(**call)
    for now, then in zip(cache.bits(), before, strict=True):
        assert (now == then).all(), "a captured call wrote"
    graph.replay()
    got = cache.bits()
    changed = [(now != then) for now, then in zip(got, before, strict=True)]
    assert any(mask.any() for mask in changed)
    for now, want, mask in zip(got, expected, changed, strict=True):
        assert (now[mask] == want[mask]).all()
