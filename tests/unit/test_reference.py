# SPDX-License-Identifier: Apache-2.0
"""The oracle against a triple loop, and the layouts against the addresses that they document."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layouts import (
    POISON,
    WILD_BLOCKS,
    LinearStyle,
    PagedStyle,
    block_cache,
    first_keys,
    linear_cache,
    paged_cache,
    strided_rows,
)
from reference import Batch, attention, from_bits, to_bits, visible, visible_range

BATCH = Batch(
    q_lens=(3, 0, 1, 7, 5),
    k_lens=(5, 4, 0, 3, 33),
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    head_dim_v=32,
    causal=True,
)

few = st.integers(0, 12)


@given(few, few, st.booleans(), st.integers(0, 15))
@settings(deadline=None)
def test_visible_keys_are_those_of_the_definition(q_len, k_len, causal, window):
    seen = visible(q_len, k_len, causal, window)
    for i in range(q_len):
        for j in range(k_len):
            position = i + k_len - q_len
            expected = j <= position if causal else True
            if window:
                expected = expected and position - window < j
                expected = expected and (causal or j < position + window)
            assert seen[i, j] == expected


@given(st.integers(0, 90), st.integers(0, 90), st.booleans(), st.integers(0, 100))
@settings(deadline=None)
def test_visible_range_is_the_interval_of_visible_keys(q_len, k_len, causal, window):
    first, end = visible_range(q_len, k_len, causal, window)
    key = np.arange(k_len)[None, :]
    inside = (first[:, None] <= key) & (key < end[:, None])
    np.testing.assert_array_equal(inside, visible(q_len, k_len, causal, window))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("finished", [(), (False, False, False, True, False)])
@pytest.mark.parametrize("sinks", [(), (-2.0, 0.0, 1.5, 30.0, -30.0, 3.0)])
def test_oracle_is_the_triple_loop(causal, window, finished, sinks):
    batch = replace(BATCH, causal=causal, window=window, finished=finished, scale=0.3, sinks=sinks)
    q, k, v = random_qkv(batch)
    before = np.full((batch.token_num, 6, 32), 7.0), np.full((6, batch.token_num), 8.0)
    out, lse = attention(batch, q, k, v, *before)
    expected_out, expected_lse = triple_loop(batch, q, k, v, *before)
    np.testing.assert_allclose(out, expected_out, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


def test_row_that_sees_nothing_is_zero_with_lse_minus_infinity():
    batch = replace(BATCH, q_lens=(7,), k_lens=(3,))
    out, lse = attention(batch, *random_qkv(batch))
    assert (out[:4] == 0).all()
    assert np.isneginf(lse[:, :4]).all()
    assert np.isfinite(lse[:, 4:]).all()
    assert list(batch.keys_seen()) == [0, 0, 0, 0, 1, 2, 3]


def test_sink_takes_its_share_of_a_row_and_leaves_blind_rows_alone():
    batch = replace(BATCH, q_lens=(2,), k_lens=(1,), sinks=(math.log(3.0),) * 6, scale=1.0)
    q, k, v = random_qkv(batch)
    out, lse = attention(batch, np.zeros_like(q), k, v)
    assert (out[0] == 0).all()
    assert np.isneginf(lse[:, 0]).all()
    np.testing.assert_allclose(out[1], np.repeat(v[0], 3, axis=0) / 4)  # 1 / (1 + 3)
    np.testing.assert_allclose(lse[:, 1], math.log(4.0))


def test_live_rows_are_those_of_unfinished_sequences():
    batch = replace(BATCH, q_lens=(2, 1, 1), k_lens=(2, 1, 1), finished=(False, True, False))
    assert list(batch.live_rows()) == [True, True, False, True]


@pytest.mark.parametrize(("dtype", "digits"), [("f16", 11), ("bf16", 8)])
def test_bits_round_to_the_nearest_value(dtype, digits):
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    rounded = from_bits(to_bits(values, dtype), dtype)
    exponent = np.floor(np.log2(np.abs(values.astype(np.float64))))
    normal = exponent > -14
    half_step = 2.0 ** (exponent - digits)
    assert (np.abs(rounded - values) <= half_step)[normal].all()
    np.testing.assert_array_equal(
        to_bits(rounded.astype(np.float32), dtype), to_bits(values, dtype)
    )


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_poison_is_nan(dtype):
    assert math.isnan(from_bits(np.array([POISON], np.uint16), dtype)[0])


@pytest.mark.parametrize("style", LinearStyle)
def test_linear_cache_holds_the_rows_and_nan_around_them(style):
    k, v = random_bits(BATCH)
    cache = linear_cache(k, v, style, np.random.default_rng(1))
    np.testing.assert_array_equal(cache.k.view[: len(k)], k)
    np.testing.assert_array_equal(cache.v.view[: len(v)], v)
    assert (cache.k.view[len(k) :] == POISON).all()
    assert len(cache.k.view) > len(k)
    strides = cache.k.strides[:2] + cache.v.strides[:2] + (cache.k.offset, cache.v.offset)
    assert not any(stride % 8 for stride in strides), "16-byte rows"


@pytest.mark.parametrize("block_len", [1, 7, 16])
@pytest.mark.parametrize("style", PagedStyle)
def test_paged_cache_is_read_through_its_table(block_len, style):
    k, v = random_bits(BATCH)
    cache = paged_cache(BATCH, k, v, block_len, style, np.random.default_rng(2))
    for b, t, row in keys_of(BATCH):
        block = cache.block_table[b, t // block_len]
        np.testing.assert_array_equal(cache.k.view[block, t % block_len], k[row])
        np.testing.assert_array_equal(cache.v.view[block, t % block_len], v[row])
    unused = np.isin(np.arange(len(cache.k.view)), cache.block_table, invert=True)
    assert unused.any() and (cache.k.view[unused] == POISON).all()
    used_elements = sum(BATCH.k_lens) * k.shape[1] * 16
    assert (cache.k.view != POISON).sum() == used_elements
    for b, k_len in enumerate(BATCH.k_lens):
        wild = cache.block_table[b, -(-k_len // block_len) :]
        assert wild.size and ((wild < 0) | (wild >= len(cache.k.view))).all()


@pytest.mark.parametrize("block_len", [1, 7, 16])
def test_block_cache_is_read_by_its_byte_layout(block_len):
    batch = replace(BATCH, head_dim_v=16)
    k, v = random_bits(batch)
    cache = block_cache(batch, k, v, block_len, np.random.default_rng(3))
    memory = cache.buffer.view(np.uint8)
    pointers = cache.block_ptrs(1000)
    row_bytes = 2 * 16
    for b, t, row in keys_of(batch):
        block = int(pointers[cache.cu_block_nums[b] + t // block_len]) - 1000
        for head in range(2):
            first = block + cache.layer_offset + head * 2 * block_len * row_bytes
            at = first + t % block_len * row_bytes
            np.testing.assert_array_equal(memory[at:][:row_bytes].view(np.uint16), k[row, head])
            at += block_len * row_bytes
            np.testing.assert_array_equal(memory[at:][:row_bytes].view(np.uint16), v[row, head])
    assert (cache.buffer != POISON).sum() == 2 * k.size
    assert cache.layer_offset % 16 == 0
    assert (np.diff(cache.cu_block_nums) >= [-(-n // block_len) for n in batch.k_lens]).all()


@pytest.mark.parametrize("block_len", [1, 4, 16])
def test_keys_in_front_of_a_window_are_in_no_block(block_len):
    batch = replace(BATCH, window=7, head_dim_v=16)
    first = first_keys(batch)
    assert first == (0, 0, 0, 0, 22)
    rng, (k, v) = np.random.default_rng(0), random_bits(batch)
    kept = batch.key_num - sum(first)

    paged = paged_cache(batch, k, v, block_len, PagedStyle.NHD, rng, first)
    block = block_cache(batch, k, v, block_len, rng, first_keys=first)
    behind = block.cu_block_nums[4]
    for entry in range(22 // block_len):
        assert paged.block_table[4, entry] in WILD_BLOCKS
        assert not block.used[behind + entry]
    assert block.used[behind + 22 // block_len]
    for rows in (paged.k.view, paged.v.view):
        assert (rows != POISON).all(axis=(-2, -1)).sum() == kept


def test_strided_rows_have_nan_between_tokens():
    rows = np.arange(5 * 2 * 16, dtype=np.uint16).reshape(5, 2, 16)
    strided = strided_rows(rows, 24, np.random.default_rng(0))
    np.testing.assert_array_equal(strided.view, rows)
    assert strided.strides == (2 * 16 + 24, 16, 1)
    assert (strided.base == POISON).sum() >= 5 * 24


def random_qkv(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((batch.token_num, batch.num_heads, batch.head_dim)),
        rng.standard_normal((batch.key_num, batch.num_kv_heads, batch.head_dim)),
        rng.standard_normal((batch.key_num, batch.num_kv_heads, batch.head_dim_v)),
    )


def random_bits(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """K and V as finite f16 bits that are all different from the poison."""
    _, k, v = random_qkv(batch)
    return to_bits(k.astype(np.float32), "f16"), to_bits(v.astype(np.float32), "f16")


def keys_of(batch: Batch) -> list[tuple[int, int, int]]:
    """(sequence, token, row of the logical K) of every key."""
    triples = [(b, t) for b, k_len in enumerate(batch.k_lens) for t in range(k_len)]
    return [(b, t, row) for row, (b, t) in enumerate(triples)]


def triple_loop(batch, q, k, v, out, lse):
    """Attention one query, one head and one key at a time."""
    out, lse = out.copy(), lse.copy()
    for b, (q_len, k_len) in enumerate(zip(batch.q_lens, batch.k_lens, strict=True)):
        seen = visible(q_len, k_len, batch.causal, batch.window)
        for i in range(q_len):
            for head in range(batch.num_heads):
                if batch.finished and batch.finished[b]:
                    continue
                row, total = batch.cu_q_len[b] + i, 0.0
                out[row, head] = 0.0
                for j in np.flatnonzero(seen[i]):
                    key = batch.cu_k_len[b] + j
                    kv_head = head * batch.num_kv_heads // batch.num_heads
                    weight = math.exp(batch.softmax_scale * float(q[row, head] @ k[key, kv_head]))
                    out[row, head] += weight * v[key, kv_head]
                    total += weight
                if total and batch.sinks:
                    total += math.exp(batch.sinks[head])
                out[row, head] /= total or 1.0
                lse[head, row] = math.log(total) if total else -math.inf
    return out, lse
