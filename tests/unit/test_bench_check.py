# SPDX-License-Identifier: Apache-2.0
"""The float64 check in front of every timing: on arrays in host memory, with the oracle of the
tests in place of a kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import quantiser
import reference
from attn_codegen.config import Cache, Dtype, KvDtype, Mask
from attn_runtime.bench import oracle, ours
from attn_runtime.bench.device import DeviceView
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.key_stores import Layout, Setup
from attn_runtime.bench.ours import OurCall
from attn_runtime.bench.shapes import Heads, Shape, cumulated

HEADS = Heads(4, 2, 32)
RAGGED = Shape((5, 1, 40), (70, 33, 40), HEADS, Mask.CAUSAL, "ragged", "")
SHAPES = [RAGGED, Shape((9, 9), (64, 64), HEADS, Mask.FULL, "full", "")]
BLOCK_LEN = 16


class HostArray:
    """A GPUArray's face over a numpy array."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.gpudata = values.ctypes.data
        self.shape, self.dtype, self.size = values.shape, values.dtype, values.size

    def __getitem__(self, index: Any) -> HostArray:
        return HostArray(self.values[index])

    def get(self) -> Any:
        return self.values.copy()


class HostBench:
    """The part of `Bench` that makes arrays."""

    class context:
        class device:
            ordinal = 0

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def normal(self, shape: Any, dtype: Dtype) -> HostArray:
        values = self._rng.standard_normal(shape, np.float32)
        bits = reference.to_bits(values, dtype.value)
        return HostArray(bits.view(np.float16) if dtype is Dtype.F16 else bits)

    def bytes(self, shape: Any, dtype: Dtype = Dtype.F16) -> HostArray:
        halves = self.normal((-(-math.prod(shape) // 2),), dtype).values
        return HostArray(halves.view(np.uint8)[: math.prod(shape)].reshape(shape))

    def to_device(self, values: Any) -> HostArray:
        return HostArray(np.array(values, order="C"))

    def empty(self, shape: Any, dtype: str) -> HostArray:
        return HostArray(np.zeros(shape, dtype))


class Oracle:
    """Attention's face; `shift` moves the causal diagonal, as a wrong kernel might."""

    shift = 0
    scale = 1.0

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def prepare(self) -> None:
        pass

    def workspace_size(self, **_: Any) -> int:
        return 0

    def __call__(self, **given: Any) -> None:
        shape, dtype = given["q"].shape, self._settings["dtype"]
        cu_q, cu_k = (given[name].values for name in ("cu_q_len", "cu_k_len"))
        batch = reference.Batch(
            tuple(np.diff(cu_q).tolist()),
            tuple((np.diff(cu_k) - self.shift).tolist()),
            shape[1],
            self._settings["num_kv_heads"],
            shape[2],
            shape[2],
            self._settings["mask"] is Mask.CAUSAL,
        )
        pairs = [rows_of(given, self._settings, b) for b in range(len(cu_q) - 1)]
        keys, values = (
            np.concatenate([pair[part][: len(pair[part]) - self.shift] for pair in pairs])
            for part in (0, 1)
        )
        as_floats = oracle.from_bits
        out = reference.attention(batch, *map(as_floats, (given["q"].get(), keys, values))).out
        bits = reference.to_bits((out * self.scale).astype(np.float32), dtype.value)
        given["out"].values[...] = bits.view(given["out"].dtype)


def rows_of(given: dict[str, Any], settings: dict[str, Any], b: int) -> tuple[Any, Any]:
    """K and V of a sequence, read as the documented layout of its cache says; codes as float64."""
    cu_k, cache, kv_dtype = given["cu_k_len"].values, settings["cache"], settings["kv_dtype"]
    places = np.arange(cu_k[b + 1] - cu_k[b])
    index: Any = slice(cu_k[b], cu_k[b + 1])
    if cache is Cache.BLOCK:
        return tuple(block_rows(given, settings, b, places, part) for part in (0, 1))
    if cache is Cache.PAGED:
        index = (given["block_table"].values[b, places // BLOCK_LEN], places % BLOCK_LEN)
    rows = [elements(given[name])[index] for name in ("k", "v")]
    if kv_dtype is KvDtype.SAME:
        return rows[0], rows[1]
    names = [name for name in ("k_pairs", "v_pairs") if name in given]
    pairs = [elements(given[name])[index].view(np.uint16) for name in names] or [None, None]
    return tuple(read(*of_part, given, settings) for of_part in zip(rows, pairs, strict=True))


def elements(given: HostArray | DeviceView) -> Any:
    """What the strides of an argument say."""
    if isinstance(given, HostArray):
        return given.values
    values, facts = given.array.values, given.__cuda_array_interface__
    assert facts["data"][0] == values.ctypes.data
    return np.lib.stride_tricks.as_strided(values, facts["shape"], facts["strides"])


def block_rows(
    given: dict[str, Any], settings: dict[str, Any], b: int, places: Any, part: int
) -> Any:
    """K (part 0) or V of a sequence: [KV head][K, V][token][row], and then the pairs alike."""
    heads, kv_dtype = settings["num_kv_heads"], settings["kv_dtype"]
    row = settings["head_dim"] * {"int8": 8, "e4m3": 8, "int4": 4}.get(kv_dtype, 16) // 8
    first, end = given["cu_block_nums"].values[b], heads * 2 * BLOCK_LEN * row
    rows, pairs = [], []
    for place in places:
        begin = int(given["block_ptrs"].values[first + place // BLOCK_LEN]) + given["layer_offset"]
        tokens = [(head * 2 + part) * BLOCK_LEN + place % BLOCK_LEN for head in range(heads)]
        rows.append([at_address(begin + token * row, row) for token in tokens])
        if kv_dtype in ("int8", "int4"):
            pairs.append([at_address(begin + end + token * 4, 4) for token in tokens])
    stored = np.array(rows)
    if kv_dtype is KvDtype.SAME:
        return stored.view(given["q"].dtype)
    return read(stored, np.array(pairs).view(np.uint16) if pairs else None, given, settings)


def read(rows: Any, pairs: Any, given: dict[str, Any], settings: dict[str, Any]) -> Any:
    """What codes stand for. A NaN of e4m3 is the next size that there would be."""
    scale = given["k_scale"].values if "k_scale" in given else 1.0
    kept = quantiser.Quantised(rows, pairs)
    with np.errstate(invalid="ignore"):
        values = quantiser.dequantise(kept, settings["dtype"].value, settings["kv_dtype"], scale)
    beyond = np.where(rows >> 7, -480.0, 480.0) * scale if pairs is None else 0.0
    return np.where(np.isnan(values), beyond, values)


def at_address(address: int, count: int) -> Any:
    """Bytes in host memory."""
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(int(address))).copy()


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "Attention", Oracle)


def call_of(
    shape: Shape,
    dtype: Dtype,
    cache: Cache,
    kv_dtype: KvDtype = KvDtype.SAME,
    layout: Layout = Layout.NHD,
) -> OurCall:
    bench: Any = HostBench()
    return OurCall(bench, shape, Setup(dtype, cache, BLOCK_LEN, kv_dtype=kv_dtype, layout=layout))


@pytest.mark.parametrize("cache", Cache)
@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("kv_dtype", KvDtype)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.row)
def test_a_right_output_passes_from_every_cache(
    shape: Shape, dtype: Dtype, kv_dtype: KvDtype, cache: Cache
) -> None:
    assert oracle.spot_check(call_of(shape, dtype, cache, kv_dtype)) >= 1


@pytest.mark.parametrize("kv_dtype", KvDtype)
def test_a_right_output_passes_where_heads_lie_in_front_of_tokens(kv_dtype: KvDtype) -> None:
    call = call_of(RAGGED, Dtype.BF16, Cache.PAGED, kv_dtype, Layout.HND)
    _, token, head, _ = call.store.arguments["k"].strides
    assert head == BLOCK_LEN * token, "the tokens of a head are neighbours"
    assert oracle.spot_check(call) >= 1


@pytest.mark.parametrize("cache", Cache)
def test_a_key_too_few_is_found(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "shift", 1)
    with pytest.raises(BenchError, match=r"wrong output for ragged .*: sequence .* float64 gives"):
        oracle.spot_check(call_of(RAGGED, Dtype.BF16, cache))


@pytest.mark.parametrize("scale", [0.0, 1.1, float("nan")])
def test_an_output_of_the_wrong_size_is_found(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Oracle, "scale", scale)
    with pytest.raises(BenchError, match="nothing is timed"):
        oracle.spot_check(call_of(SHAPES[1], Dtype.F16, Cache.LINEAR))


def test_the_keys_that_a_query_sees_are_those_of_the_reference() -> None:
    for shape in SHAPES:
        causal = shape.mask is Mask.CAUSAL
        for b, (q_len, k_len) in enumerate(zip(shape.q_lens, shape.k_lens, strict=True)):
            seen = reference.visible(q_len, k_len, causal, 0).sum(axis=1)
            assert [oracle.keys_seen(shape, b, i) for i in range(q_len)] == seen.tolist()


def test_blocks_stand_in_random_order_and_none_twice() -> None:
    call = call_of(RAGGED, Dtype.BF16, Cache.PAGED)
    table = call.store.arguments["block_table"].values
    used = table[table >= 0]
    counts = [-(-k_len // BLOCK_LEN) for k_len in RAGGED.k_lens]
    assert sorted(used) == list(range(sum(counts)))
    assert cumulated(counts)[-1] == len(used)
    assert used.tolist() != sorted(used)
