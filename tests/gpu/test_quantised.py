# SPDX-License-Identifier: Apache-2.0
"""Attention on quantised caches against the exact values that their codes stand for, and round
trips of writer, decode and prefill against what was written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from kv_harness import (
    DEVICE,
    SCALE_OF_E4M3,
    Layout,
    draw_rows,
    ints,
    kept,
    scales_of,
    upload,
)

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, KvDtype, Mask, Mode
from attn_codegen.rules import is_valid
from attn_codegen.tiling import tilings
from attn_runtime import Attention, KVCache
from attn_runtime.plan import SplitPolicy
from criterion import complaints, lse_limit
from layouts import LinearStyle, PagedStyle, first_keys
from quantiser import error_bound, quantise
from reference import UNIT_ROUNDOFF, Batch, to_bits
from reference_torch import (
    DTYPES,
    TorchResult,
    attention,
    attention_at_input_precision,
    from_bits,
    torch,
)

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
QUANTISED = tuple(kv for kv in KvDtype if kv is not KvDtype.SAME)
HEAD_DIMS = (128, 64, 192, 256, 96, 32)
TASKS = 7
SPLITS = (
    SplitPolicy.heuristic(),
    SplitPolicy.heuristic(),
    SplitPolicy.off(),
    SplitPolicy.fixed(7),
    SplitPolicy.fixed_size(256),
)
BEFORE = 0x4321


def configs() -> list[AttentionConfig]:
    """Each mode, family, element type and cache at two widths, masks in turn."""
    found = []
    kinds = [
        (mode, arch, dtype, kv, cache)
        for mode, arch in product((Mode.DECODE, Mode.PREFILL), (Arch.SM80, Arch.SM90))
        for dtype in Dtype
        for kv in QUANTISED
        for cache in Cache
    ]
    for index, (mode, arch, dtype, kv_dtype, cache) in enumerate(kinds):
        mask = Mask.FULL if mode is Mode.PREFILL and index % 2 else Mask.CAUSAL
        for head_dim in dict.fromkeys((128, HEAD_DIMS[index % len(HEAD_DIMS)])):
            config = AttentionConfig.of(
                mode=mode,
                arch=arch,
                dtype=dtype,
                kv_dtype=kv_dtype,
                head_dim=head_dim,
                cache=cache,
                mask=mask,
            )
            found += [config] if is_valid(config) else []
    return found


def decode_config(kv_dtype: KvDtype, **axes: Any) -> AttentionConfig:
    return AttentionConfig.of(
        **({"mode": "decode", "dtype": "bf16", "cache": "paged"} | axes), kv_dtype=kv_dtype
    )


@dataclass(frozen=True, slots=True)
class Task:
    """A problem over a quantised cache, and how it lies."""

    batch: Batch
    layout: Layout
    split: SplitPolicy = SplitPolicy()  # noqa: RUF009  # frozen
    amplitude: float = 1.0
    value_amplitude: float = 1.0
    per_head: bool = False
    slack: int = 0
    tile: str | None = "default"


def random_task(config: AttentionConfig, index: int) -> Task:
    rng = np.random.default_rng([crc32(config.name.encode()), index])
    group = int(rng.choice([1, 2, 4, 5, 8, 16]))
    kv_heads = int(rng.choice([1, 2, 3]))
    q_edges = [1, 1, 1, 2, 8, 0] if config.mode is Mode.DECODE else [1, 17, 64, 128, 200, 0]
    k_edges = [0, 1, 15, 16, 17, 63, 64, 65, 100, 128, 129, 300, 1000, 3000]
    count = int(rng.integers(1, 7))
    q_lens = [int(rng.choice(q_edges)) for _ in range(count)]
    q_lens[0] = q_lens[0] or 1
    k_lens = [int(rng.choice([*k_edges, q_len])) for q_len in q_lens]
    finished = tuple(bool(rng.integers(3) == 0) for _ in q_lens) if index % 4 == 3 else ()
    batch = Batch(
        q_lens=tuple(q_lens),
        k_lens=tuple(k_lens),
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim,
        causal=config.mask is Mask.CAUSAL,
        window=int(rng.choice([0, 0, 0, 33, 500])),
        finished=finished,
    )
    return Task(
        batch=batch,
        layout=Layout(
            block_len=int(rng.choice([1, 7, 16, 64, 128])),
            linear_style=rng.choice(list(LinearStyle)),
            paged_style=rng.choice(list(PagedStyle)),
            seed=index,
        ),
        split=SPLITS[int(rng.integers(len(SPLITS)))],
        amplitude=float(rng.choice([1.0, 1.0, 0.1, 4.0])),
        value_amplitude=float(rng.choice([1.0, 1.0, 0.01, 8.0])),
        per_head=bool(rng.integers(2)),
        slack=int(rng.choice([0, 1, 1000])),
    )


def attention_for(config: AttentionConfig, task: Task) -> Attention:
    batch = task.batch
    return Attention(
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=config.head_dim,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        cache=config.cache or Cache.PAGED,
        mask=config.mask or Mask.CAUSAL,
        window_size=batch.window,
        split=task.split,
        mode=config.mode,
        arch=config.arch,
        tile=task.tile,
    )


def verdict(config: AttentionConfig, task: Task) -> list[str]:
    """Runs a task twice; what is wrong with its output."""
    batch, dtype = task.batch, config.dtype.value
    rng = np.random.default_rng(task.layout.seed + 1)
    heads = batch.num_kv_heads
    q_bits = to_bits(
        (rng.standard_normal((batch.token_num, batch.num_heads, config.head_dim)) + 0.25).astype(
            np.float32
        ),
        dtype,
    )
    rows, values = [], []
    scales = [scales_of(config, heads, task.per_head) * np.float32(factor) for factor in (1, 3)]
    for scale, amplitude in zip(scales, (task.amplitude, task.value_amplitude), strict=True):
        bits = draw_rows(rng, batch.key_num, heads, config.head_dim, dtype, amplitude)
        kept_rows, exact = kept(config, bits, scale)
        rows.append(kept_rows)
        values.append(torch.from_numpy(exact).to(DEVICE))
    is_e4m3 = config.kv_dtype is KvDtype.E4M3
    cache = upload(
        config,
        batch,
        rows[0],
        rows[1],
        task.layout,
        (scales[0], scales[1]) if is_e4m3 else None,
        first_keys(batch),
    )
    q = from_bits(q_bits, dtype, DEVICE)
    call = cache.call | {
        "q": q,
        "cu_q_len": ints(batch.cu_q_len),
        "cu_k_len": ints(batch.cu_k_len),
        "max_q_len": max(batch.q_lens) + (task.slack if config.mode is Mode.PREFILL else 0),
        "max_k_len": max(batch.k_lens) + task.slack,
    }
    if batch.finished:
        call["finished"] = torch.tensor(batch.finished, device=DEVICE)
    attn = attention_for(config, task)
    outputs = [run(attn, call, batch, dtype) for _ in range(2)]
    k, v = values
    exact = attention(batch, q, k, v)
    rounded = attention_at_input_precision(batch, q, k.to(q.dtype), v.to(q.dtype))
    live = torch.from_numpy(batch.live_rows()).to(DEVICE)
    limit = score_limit(config, batch, q, k, may_be_prefill=task.tile is None)
    found = complaints(batch, dtype, outputs[0], exact, rounded, limit)
    if not torch.equal(bits_of(outputs[0].out), bits_of(outputs[1].out)):
        found.append("out: a second call gives other bits")
    if (bits_of(outputs[0].out)[~live] != BEFORE).any():
        found.append("out: rows of a finished sequence were written")
    return found


def score_limit(
    config: AttentionConfig,
    batch: Batch,
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    may_be_prefill: bool,
) -> float:
    """How far lse may be off.

    Decode adds scale (q . e) and zero (sum of q), each at most |q| |k| in size: twice the sum of
    products that `lse_limit` allows for. Prefill rounds each element of K to 16 bits, after which a
    score is off by u scale |q| |k| at most, by Cauchy.
    """
    limit = 2 * lse_limit(batch, q, k)
    if (
        (config.mode is Mode.PREFILL or may_be_prefill)
        and config.kv_dtype is not KvDtype.E4M3
        and q.numel() * k.numel()
    ):
        norms = [x.double().norm(dim=-1).max().item() for x in (q, k)]
        limit += UNIT_ROUNDOFF[config.dtype.value] * batch.softmax_scale * norms[0] * norms[1]
    return limit


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int16)


def run(attn: Attention, call: dict[str, Any], batch: Batch, dtype: str) -> TorchResult:
    """One call into memory that holds BEFORE, with a workspace of NaN."""
    shape = batch.token_num, batch.num_heads, batch.head_dim
    out = torch.full(shape, BEFORE, dtype=torch.int16, device=DEVICE).view(DTYPES[dtype])
    lse = torch.full((shape[1], shape[0]), 7.0, device=DEVICE)
    size = attn.workspace_size(
        token_num=shape[0],
        batch_size=len(batch.q_lens),
        max_q_len=call["max_q_len"],
        max_k_len=call["max_k_len"],
    )
    workspace = torch.full((max(size, 256),), 0xFF, dtype=torch.uint8, device=DEVICE)
    attn(**call, out=out, lse=lse, workspace=workspace)
    return TorchResult(out, lse)


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.name)
def test_a_kernel_gives_the_oracle_s_output_on_what_the_codes_stand_for(
    config: AttentionConfig,
) -> None:
    failures: list[str] = []
    for index in range(TASKS):
        task = random_task(config, index)
        found = verdict(config, task)
        if found:
            failures.append("\n    ".join([f"task {index}: {task}", *found[:4]]))
    if failures:
        pytest.fail(f"{len(failures)} of {TASKS} tasks, first:\n" + "\n".join(failures[:3]), False)


@pytest.mark.parametrize("kv_dtype", QUANTISED)
@pytest.mark.parametrize("split", ["heuristic", "off"])
def test_a_hundred_thousand_keys_are_right(kv_dtype: KvDtype, split: str) -> None:
    config = decode_config(kv_dtype, head_dim=128)
    batch = Batch((8, 1, 3, 1), (100_000, 1, 31_337, 0), 8, 1, 128, 128, causal=True)
    policy = SplitPolicy.off() if split == "off" else SplitPolicy.heuristic()
    assert verdict(config, Task(batch, Layout(64), policy)) == []


@pytest.mark.parametrize("rows", [8, 16, 32])
@pytest.mark.parametrize("kv_dtype", QUANTISED)
def test_every_tile_is_right(kv_dtype: KvDtype, rows: int) -> None:
    config = decode_config(kv_dtype)
    for word, tile in tilings(config).items():
        if tile.cta_q == rows:
            batch = Batch((2, 5, 1), (700, 33, 129), 8, 2, 128, 128, causal=True)
            task = Task(batch, Layout(16), tile=word or "default")
            assert verdict(config, task) == [], word


@pytest.mark.parametrize("amplitude", [2.0**-20, 2.0**-10, 4000.0])
@pytest.mark.parametrize("kv_dtype", [KvDtype.INT8, KvDtype.INT4])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_scales_of_any_size_keep_their_precision(
    dtype: Dtype, kv_dtype: KvDtype, amplitude: float
) -> None:
    """Small V must not be lost, and large ones not overflow, in the 16 bits of a probability."""
    config = decode_config(kv_dtype, dtype=dtype)
    batch = Batch((1, 2), (300, 77), 4, 2, 128, 128, causal=True)
    assert verdict(config, Task(batch, Layout(16), value_amplitude=amplitude)) == []


@pytest.mark.parametrize("kv_dtype", list(KvDtype))
def test_written_decoded_and_prefilled_stay_within_the_quantiser_s_bound(
    kv_dtype: KvDtype,
) -> None:
    """K and V go through KVCache in two parts; attention then sees them off by the bound at most.

    With keys off by dk and values by dv (the largest errors of one element, by error_bound), a
    score is off by e = scale |q|_1 dk, and a probability by a factor of exp(2 e) at most, so

        |out - exact|  <=  dv + (exp(2 e) - 1) max |v|  +  what 16 bits add
    """
    heads, width, dtype = 2, 64, "bf16"
    rng = np.random.default_rng(11)
    q_lens, prefix = [3, 1], [130, 700]
    k_lens = [a + b for a, b in zip(q_lens, prefix, strict=True)]
    rows = [draw_rows(rng, sum(k_lens), heads, width, dtype, 0.5) for _ in range(2)]
    scale = SCALE_OF_E4M3
    scales = {"k_scale": scale, "v_scale": scale} if kv_dtype is KvDtype.E4M3 else {}
    cache = KVCache(
        block_count=32,
        num_kv_heads=heads,
        head_dim=width,
        block_len=32,
        dtype=dtype,
        kv_dtype=kv_dtype,
        **{name: torch.tensor([value], device=DEVICE) for name, value in scales.items()},
    )
    keys, values = (from_bits(bits, dtype, DEVICE) for bits in rows)
    starts = np.array([0, k_lens[0]])
    first = np.concatenate([start + np.arange(n) for start, n in zip(starts, prefix, strict=True)])
    last = np.concatenate(
        [start + n + np.arange(m) for start, n, m in zip(starts, prefix, q_lens, strict=True)]
    )
    cache.append(["a", "b"], keys[first], values[first], prefix)
    call = cache.append(["a", "b"], keys[last], values[last], q_lens)
    batch = Batch(tuple(q_lens), tuple(k_lens), 4, heads, width, width, causal=True)
    q = torch.randn(batch.token_num, 4, width, device=DEVICE).to(DTYPES[dtype])
    exact = attention(batch, q, keys, values).out
    limit = _round_trip_limit(batch, q, rows, dtype, kv_dtype, scale)
    for mode in ("decode", "prefill"):
        attn = Attention(
            num_heads=4, num_kv_heads=heads, head_dim=width, kv_dtype=kv_dtype, mode=mode
        )
        error = (attn(q, **call).double() - exact).abs().max().item()
        assert error <= limit, mode


def _round_trip_limit(
    batch: Batch,
    q: torch.Tensor,
    rows: list[Any],
    dtype: str,
    kv_dtype: KvDtype,
    scale: float,
) -> float:
    dk, dv = 0.0, 0.0
    if kv_dtype is not KvDtype.SAME:
        scales = np.float32(scale)
        found = [quantise(bits, dtype, kv_dtype.value, scales) for bits in rows]
        dk, dv = (
            float(error_bound(bits, kept_rows, dtype, kv_dtype.value, scales).max())
            for bits, kept_rows in zip(rows, found, strict=True)
        )
    score = batch.softmax_scale * q.double().abs().sum(dim=-1).max().item() * dk
    largest = float(np.abs(from_bits(rows[1], dtype, "cpu").double().numpy()).max())
    return dv + (np.exp(2 * score) - 1) * largest + 2.0**-7 * largest
