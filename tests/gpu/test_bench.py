# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench` on a GPU: small shapes, its own kernels, and figures that can be true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from attn_codegen.config import Dtype
from attn_runtime import driver
from attn_runtime.bench import overhead
from attn_runtime.bench.bandwidth import measure_bandwidth
from attn_runtime.bench.device import Bench
from attn_runtime.bench.graph import Graph
from attn_runtime.bench.oracle import from_bits
from commands import run

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
SMALL = ("--rounds", "1", "--json")
MOST_TFLOPS = 3000.0
MOST_BYTES_PER_SECOND = 2e13
"""More than any GPU has."""


@pytest.fixture
def bench() -> Iterator[Bench]:
    context = driver.context_of_device(0)
    with context:
        yield Bench(context)


@pytest.mark.parametrize("cache", ["linear", "paged", "block"])
def test_prefill_is_checked_and_timed_from_every_cache(cache: str) -> None:
    args = ("--tokens", "2048", "--lengths", "512,1k", "--cache", cache, "--block-len", "16")
    done = run("bench", "prefill", *args, "--peers", "flash,linear", *SMALL)
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    assert len(cells) == 4
    for cell in cells:
        assert set(cell["tflops"]) == {"ours", "flash", "linear"}, cell["missing"]
        assert all(0 < rate < MOST_TFLOPS for rate in cell["tflops"].values())


@pytest.mark.parametrize("cache", ["linear", "paged", "block"])
def test_prefill_on_codes_is_checked_and_timed_beside_the_plain_cache(cache: str) -> None:
    args = ("--tokens", "2048", "--lengths", "512", "--cache", cache, "--block-len", "16")
    kinds = ("int8", "int4", "e4m3")
    done = run("bench", "prefill", *args, "--kv", ",".join(kinds), "--peers", "none", *SMALL)
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    assert [cell["kv_dtype"] for cell in cells] == [*kinds, *kinds]
    for cell in cells:
        assert set(cell["tflops"]) == {"ours", "same"}
        assert all(0 < rate < MOST_TFLOPS for rate in cell["tflops"].values())


@pytest.mark.parametrize(
    "args", [("--varlen", "--tokens", "2048", "--lengths", "300"), ("--chunk", "64:2k")]
)
def test_ragged_batches_and_chunks_run_beside_flash_attention(args: tuple[str, ...]) -> None:
    done = run("bench", "prefill", *args, "--heads", "8", "--kv-heads", "2", *SMALL)
    assert done.code == 0, done.err
    for cell in json.loads(done.out)["cells"]:
        assert {"ours", "flash"} <= set(cell["tflops"]), cell["missing"]


@pytest.mark.parametrize("cache", ["linear", "paged", "block"])
def test_writers_are_checked_and_timed_beside_a_copy(cache: str) -> None:
    done = run("bench", "write", "--tokens", "3000", "--cache", cache, *SMALL)
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    assert len(cells) == 8
    for cell in cells:
        assert 1.0 < cell["microseconds"] < 1000.0
        assert 1e11 < cell["copy"] < MOST_BYTES_PER_SECOND


@pytest.mark.parametrize("layout", ["nhd", "hnd", "interleaved"])
@pytest.mark.parametrize("extra", [(), ("--ragged", "--queries", "3")], ids=["equal", "ragged"])
def test_decode_is_checked_and_timed_in_every_layout(layout: str, extra: tuple[str, ...]) -> None:
    args = ("--batch", "1,5", "--context", "1k,3000", "--layout", layout, "--peers", "none")
    done = run("bench", "decode", *args, *extra, *SMALL)
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert 0 < data["pieces"] < MOST_BYTES_PER_SECOND
    for cell in data["cells"]:
        assert 0.5 < cell["stream"]["ours"] < cell["cold"]["ours"] < 1000.0


def test_the_host_s_time_is_measured_for_python_and_cpp() -> None:
    lines: list[str] = []
    costs = overhead.run(Dtype.BF16, None, lines.append)
    assert len(lines) == 4 + len(costs.microseconds)
    assert not costs.missing
    assert {"Attention, torch tensors", "torch SDPA"} <= set(costs.microseconds)
    assert all(0.5 < value < 500.0 for value in costs.microseconds.values())


@pytest.mark.parametrize("dtype", Dtype)
def test_inputs_are_normal_and_no_two_arrays_are_alike(bench: Bench, dtype: Dtype) -> None:
    arrays = [from_bits(bench.normal((1000, 1024), dtype).get()) for _ in range(3)]
    for values in arrays:
        # The standard errors of mean and variance over n values: 1 / sqrt(n), sqrt(2 / n).
        assert abs(values.mean()) < 5e-3
        assert abs(values.var() - 1) < 8e-3
        assert 4.0 < np.abs(values).max() < 7.0
        neighbours = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
        assert abs(neighbours) < 5e-3
    for one, other in pairwise(arrays):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5e-3


def test_reading_goes_on_in_any_order_and_writing_reaches_every_byte(bench: Bench) -> None:
    array = bench.empty((128 << 20,), "uint8")
    bench.write(array, value=0x01010101)
    assert (array[-4096:].get() == 1).all() and (array[:4096].get() == 1).all()
    found = measure_bandwidth(bench, array)
    for rate in (found.sequential, found.pieces):
        assert 1e11 < rate < MOST_BYTES_PER_SECOND


def test_a_graph_replays_what_was_captured_and_nothing_before(bench: Bench) -> None:
    array = bench.empty((256,), "uint8")
    bench.write(array, value=0)
    graph = Graph(lambda stream: bench.write(array, value=0x02020202, stream=stream))
    assert (array.get() == 0).all()
    graph()
    assert (array.get() == 2).all()
