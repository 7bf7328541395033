# SPDX-License-Identifier: Apache-2.0
"""What `bench decode` times and prints; the arrays stand in host memory."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench_check import HostArray, HostBench
from test_bench_commands import Context

from attn_codegen.config import Dtype, KvDtype
from attn_runtime import driver
from attn_runtime.bench import (
    codes,
    decode,
    decode_peers,
    decode_report,
    machine,
    oracle,
    peers,
    results,
)
from attn_runtime.bench.bandwidth import Bandwidth
from attn_runtime.bench.decode_pool import DecodeSetup, Pool, tables_of
from attn_runtime.bench.decode_report import DecodeFigures, DecodeResults
from attn_runtime.bench.decode_shapes import (
    BATCHES,
    CONTEXTS,
    STREAM_BYTES,
    DecodeCell,
    decode_cells,
    kv_bytes,
)
from attn_runtime.bench.device import DeviceView
from attn_runtime.bench.errors import BenchError, Unavailable
from attn_runtime.bench.key_stores import Layout
from attn_runtime.bench.shapes import Heads
from commands import run
from quantiser import Quantised, dequantise

HEADS = Heads(32, 8, 128)


def test_the_grid_reads_what_the_table_of_the_peers_says() -> None:
    cells = {cell.shape.row: cell for cell in decode_cells(BATCHES, CONTEXTS, HEADS)}
    assert len(cells) == 15
    for name, megabytes in (
        ("1 x 1k", 4),
        ("8 x 4k", 134),
        ("32 x 16k", 2147),
        ("128 x 16k", 8590),
    ):
        assert round(cells[name].kv_bytes / 1e6) == megabytes


def test_a_stream_reads_more_than_any_l2_before_a_block_comes_again() -> None:
    for cell in decode_cells(BATCHES, CONTEXTS, HEADS):
        assert cell.rotation * cell.kv_bytes >= STREAM_BYTES
        assert cell.rotation == 1 or (cell.rotation - 1) * cell.kv_bytes < STREAM_BYTES
        assert cell.launches % cell.rotation == 0
        assert cell.launches >= 8


def test_ragged_lengths_are_uniform_and_the_same_again() -> None:
    (cell,) = decode_cells([2000], [32_768], HEADS, is_ragged=True)
    k_lens = cell.shape.k_lens
    assert min(k_lens) >= 1 and max(k_lens) <= 32_768
    assert sum(k_lens) / len(k_lens) == pytest.approx(16_384, rel=0.05)
    assert decode_cells([2000], [32_768], HEADS, is_ragged=True) == [cell]
    assert cell.shape.row == "2000 x 1..32k"
    assert kv_bytes(cell.shape) == sum(k_lens) * 8 * 128 * 2 * 2


@pytest.mark.parametrize("is_scattered", [False, True])
def test_no_two_copies_of_a_cache_have_a_block_in_common(is_scattered: bool) -> None:
    (cell,) = decode_cells([3], [100], HEADS, is_ragged=True)
    tables = tables_of(cell.shape, 5, 16, is_scattered=is_scattered)
    used = np.concatenate([table[table >= 0] for table in tables])
    blocks = sum(-(-k_len // 16) for k_len in cell.shape.k_lens)
    assert sorted(used) == list(range(5 * blocks))
    assert (used.max() >= 2 * blocks) and list(used) != sorted(used)
    in_first = tables[0][tables[0] >= 0]
    assert (in_first.max() < blocks) is not is_scattered
    for table in tables:
        counts = (table >= 0).sum(axis=1)
        assert [16 * count >= k for count, k in zip(counts, cell.shape.k_lens, strict=True)]


@pytest.mark.parametrize("layout", Layout)
def test_the_host_reads_the_rows_that_a_kernel_is_given(layout: Layout) -> None:
    bench: Any = HostBench()
    setup = DecodeSetup(Dtype.F16, Heads(4, 2, 16), layout, block_len=4)
    pool = Pool(bench, setup, blocks=6)
    ids = np.array([5, 0, 3], np.int32)
    expected = [seen_by_a_kernel(part)[ids].reshape(12, 2, 16) for part in parts_of(pool)]
    for rows, own in zip(pool.blocks(ids), expected, strict=True):
        np.testing.assert_array_equal(rows, own)


def parts_of(pool: Pool) -> tuple[DeviceView, DeviceView]:
    return pool.arguments["k"], pool.arguments["v"]


def seen_by_a_kernel(view: DeviceView) -> Any:
    """[block, token, head, head_dim] by the CUDA array interface, in host memory."""
    array: HostArray = view.array
    facts = view.__cuda_array_interface__
    begin = (facts["data"][0] - array.gpudata) // 2
    return np.lib.stride_tricks.as_strided(array.values[begin:], facts["shape"], facts["strides"])


def test_interleaved_pools_hold_a_head_s_keys_and_values_side_by_side() -> None:
    bench: Any = HostBench()
    pool = Pool(bench, DecodeSetup(Dtype.BF16, HEADS, Layout.INTERLEAVED, 64), blocks=2)
    assert pool.arguments["k"].strides == (2 * 8 * 64 * 128, 128, 2 * 64 * 128, 1)
    assert pool.arguments["v"].offset - pool.arguments["k"].offset == 64 * 128


CELLS = (
    DecodeFigures("1 x 1k", 4_194_304, {"ours": 10.0, "flash": 20.0}, {"ours": 5.0, "flash": 8.0}),
    DecodeFigures(
        "64 x 16k", 4_294_967_296, {"ours": 950.0}, {"ours": 940.0}, {"flash": "no room"}
    ),
)
RESULTS = DecodeResults(
    "decode, bf16",
    ("flash",),
    {"date": "2026-01-31", "device": "A GPU", "driver": "580.1"},
    {"before": "SM 1980 MHz"},
    4.62e12,
    4.57e12,
    {"cold": 3.8, "stream": 0.8},
    CELLS,
)


def test_a_decode_report_says_what_bounds_it_and_every_cell() -> None:
    assert results.text(RESULTS).splitlines() == [
        "A GPU, 2026-01-31",
        "driver 580.1",
        "decode, bf16",
        "clocks before: SM 1980 MHz",
        "reading: 4.62 TB/s in order, 4.57 TB/s in 32 KB pieces in random order (share is of "
        "that); an empty kernel: cold 3.8 us, stream 0.8 us",
        "",
        "batch x context    MB  cold us  stream us  TB/s  share  x flash cold  x flash stream",
        "1 x 1k              4     10.0        5.0  0.84   18 %          2.00            1.60",
        "64 x 16k         4295    950.0      940.0  4.57  100 %             -               -",
        "",
        "x flash, cold: geometric mean 2.00 of 1 cell, lowest 2.00 (1 x 1k)",
        "x flash, stream: geometric mean 1.60 of 1 cell, lowest 1.60 (1 x 1k)",
        "flash: no room",
    ]
    markdown = results.text(RESULTS, markdown=True).splitlines()
    assert "| 1 x 1k | 4 | 10.0 | 5.0 | 0.84 | 18 % | 2.00 | 1.60 |" in markdown


def test_saved_decode_results_are_shown_again(tmp_path: Path) -> None:
    file = tmp_path / "decode.json"
    results.save(RESULTS, file)
    assert results.load(file) == RESULTS
    done = run("bench", "show", str(file))
    assert done.out == results.text(RESULTS) + "\n"
    with pytest.raises(BenchError, match="holds no decode results"):
        DecodeResults.from_json(json.loads(file.read_text()) | {"schema": "another"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ("{}", "its schema is None, not one of 'attn-codegen bench prefill"),
        (json.dumps({"schema": decode_report.SCHEMA}), "is not whole (KeyError("),
    ],
)
def test_a_file_without_results_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(
        BenchError, match=r"use a file that attn-codegen bench .* --save wrote"
    ) as no:
        results.load(tmp_path / "run.json")
    assert fault in str(no.value)


def test_a_picture_of_decode_results_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: not installed")
    results.save(replace(RESULTS, cells=CELLS * 2), tmp_path / "decode.json")
    picture = tmp_path / "decode.png"
    assert run("bench", "show", str(tmp_path / "decode.json"), "--plot", str(picture)).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--group", "5", "--heads", "32"), "--group 5 does not divide 32 heads"),
        (("--group", "4", "--heads", "32", "--kv-heads", "8"), "give two of the three"),
        (("--model", "llama3-8b", "--kv-heads", "8"), "--model fixes the heads"),
        (("--context", "no"), "context 'no' is no whole number from 1 on"),
        (("--batch", "0"), "batch '0' is no whole number from 1 on"),
        (("--peers", "linear"), "peer 'linear' is unknown: use some of cudnn, flash"),
    ],
)
def test_nonsense_is_refused_in_one_line(args: tuple[str, ...], said: str) -> None:
    done = run("bench", "decode", *args)
    assert done.code != 0
    assert said in done.err
    assert done.err.count("\n") == 1


class Replay:
    """A graph of launches that take a microsecond per 4 MB each, and 3 more for a peer."""

    def __init__(self, cell: DecodeCell, extra_us: float) -> None:
        self._us = cell.kv_bytes / 4e6 + extra_us
        self.us = 0.0

    def captured(self, copies: Any) -> Replay:
        again = copy.copy(self)
        again.us = len(copies) * self._us
        return again

    def __call__(self) -> None:
        pass


class Clock:
    """A device that asks a graph how long it takes."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def empty(self, shape: Any, dtype: str) -> Any:
        return np.zeros((1,), dtype)

    def milliseconds(self, call: Any, repeats: int, host_s: float) -> float:
        return float(getattr(call, "us", 50.0)) / 1e3

    def cold_milliseconds(self, call: Any, flushed: Any) -> float:
        return float(getattr(call, "us", 0.0)) / 1e3 + 3e-3

    def synchronize(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the GPU."""

    def build(name: str, cell: DecodeCell, setup: Any) -> Any:
        if name == "cudnn":
            raise Unavailable("takes one query of sequences of one length")
        return Replay(cell, 3.0).captured

    monkeypatch.setattr(driver, "current_device", lambda: 0)
    monkeypatch.setattr(driver, "context_of_device", lambda _: Context())
    monkeypatch.setattr(decode, "Bench", Clock)
    monkeypatch.setattr(decode, "Pool", lambda *_: None)
    monkeypatch.setattr(decode, "Graph", lambda enqueue: lambda: None)
    monkeypatch.setattr(decode, "_bandwidth", lambda _: Bandwidth(4.6e12, 4.5e12))
    monkeypatch.setattr(decode, "DecodeCall", lambda bench, cell, setup, pool: cell)
    monkeypatch.setattr(oracle, "spot_check", lambda call: 4)
    monkeypatch.setattr(decode_peers, "capture_ours", lambda cell: Replay(cell, 0.0).captured)
    monkeypatch.setattr(decode_peers, "build", build)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "clocks", lambda _: "SM 1980 MHz")
    monkeypatch.setattr(machine, "facts_of", lambda _: {"device": "A GPU", "date": "2026-01-31"})


@pytest.mark.usefixtures("clock")
def test_decode_prints_each_cell_and_saves_what_it_prints(tmp_path: Path) -> None:
    file = tmp_path / "decode.json"
    done = run("bench", "decode", "--peers", "cudnn,flash", "--save", str(file))
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line]
    assert len({len(line) for line in lines if "%" in line}) == 1, "the columns stand"
    (first,) = (line for line in lines if line.startswith("1 x 1k "))
    #             1 x 1k            MB   cold   stream TB/s   share of 4.5       cudnn     flash
    assert first.split()[3:] == ["4", "4.0", "1.0", "4.00", "89", "%", "-", "-", "1.74", "3.86"]
    assert "cudnn: takes one query of sequences of one length" in lines
    again = run("bench", "show", str(file)).out
    assert {" ".join(line.split()) for line in lines if "%" in line} <= {
        " ".join(line.split()) for line in again.splitlines()
    }


@pytest.mark.usefixtures("clock")
def test_codes_are_compared_with_the_plain_cache_and_saved_with_it(tmp_path: Path) -> None:
    file = tmp_path / "codes.json"
    args = ("--kv", "int8,same", "--batch", "8", "--context", "4k", "--peers", "none")
    done = run("bench", "decode", *args, "--save", str(file))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    plain, codes_of = (line for line in lines if line.startswith("8 x 4k"))
    #              8 x 4k          MB    cold    stream  TB/s   share of 4.5      x same
    assert plain.split()[3:] == ["134", "36.6", "33.6", "4.00", "89", "%", "-", "-"]
    assert codes_of.split()[3:] == ["int8", "69", "20.3", "17.3", "4.00", "89", "%", "1.80", "1.94"]
    assert "x same, int8, stream: geometric mean 1.94 of 1 cell, lowest 1.94 (8 x 4k)" in lines
    assert " on same, int8, 32/8 heads" in done.out
    again = run("bench", "show", str(file)).out.splitlines()
    assert {" ".join(line.split()) for line in again} >= {
        " ".join(line.split()) for line in lines if "%" in line or "x same" in line
    }


@pytest.mark.usefixtures("clock")
def test_groups_of_heads_are_any_two_of_three() -> None:
    for args, word in (
        (("--group", "7", "--kv-heads", "4"), "28/4 heads of 128"),
        (("--group", "32"), "32/1 heads of 128"),
        (("--heads", "40", "--kv-heads", "8", "--head-dim", "64"), "40/8 heads of 64"),
        (("--model", "gpt-oss-120b"), "64/8 heads of 64"),
    ):
        done = run("bench", "decode", *args, "--batch", "1", "--context", "1k", "--peers", "none")
        assert done.code == 0, done.err
        assert word in done.out


@pytest.mark.parametrize("kv_dtype", [kv for kv in KvDtype if kv is not KvDtype.SAME])
def test_codes_stand_for_what_the_quantiser_says(kv_dtype: KvDtype) -> None:
    rows = np.arange(256, dtype=np.uint8).reshape(2, 128)
    scale = codes.SCALE[kv_dtype]
    pairs = None
    if kv_dtype is not KvDtype.E4M3:
        pairs = codes.pairs_of(kv_dtype, True, 2)
        assert codes.row_bytes(kv_dtype, 128) == (64 if kv_dtype is KvDtype.INT4 else 128) + 4
    exact = dequantise(Quantised(rows, pairs), "bf16", kv_dtype.value, np.float32(scale))
    known = np.isfinite(exact)
    assert (codes.values_of(rows, kv_dtype)[known] == exact[known]).all()
