# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench write`: the check in front of it on arrays in host memory, with the oracle of
the tests in place of a kernel; and the report, with a clock in place of a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench_check import HostBench
from test_bench_commands import Clock, Context

import quantiser
from attn_codegen.config import Cache, Dtype, KvDtype
from attn_runtime import driver
from attn_runtime.bench import codes, machine, write
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.key_stores import Setup
from attn_runtime.bench.shapes import Heads, Shape
from attn_runtime.bench.write_report import WriteFigures
from commands import run

LENS = (33, 5, 16)
SHAPE = Shape(LENS, LENS, Heads(2, 2, 64), write.Mask.CAUSAL, "64", "")
BLOCK_LEN = 16
CACHES = [Cache.LINEAR, Cache.PAGED]


class Writer:
    """CacheWriter's face; `broken` leaves the last row of each sequence out."""

    broken = False

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def prepare(self) -> None:
        pass

    def __call__(self, **given: Any) -> None:
        dtype, kv_dtype = self._settings["dtype"].value, self._settings["kv_dtype"]
        cu = given["cu_k_len"].values
        for b in range(len(cu) - 1):
            places = np.arange(cu[b + 1] - cu[b] - self.broken)
            index: Any = cu[b] + places
            if self._settings["cache"] is Cache.PAGED:
                index = (given["block_table"].values[b, places // BLOCK_LEN], places % BLOCK_LEN)
            for name in "kv":
                rows = given[f"{name}_new"].values[cu[b] + places]
                if kv_dtype is KvDtype.SAME:
                    given[name].values[index] = rows
                    continue
                scale = given["k_scale"].values if "k_scale" in given else 1.0
                kept = quantiser.quantise(rows.view(np.uint16), dtype, kv_dtype, scale)
                given[name].values[index] = kept.codes
                if kept.pairs is not None:
                    pairs = given[f"{name}_pairs"].values
                    pairs[index] = kept.pairs.view(pairs.dtype)


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "CacheWriter", Writer)


def call_of(dtype: Dtype, cache: Cache, kv_dtype: KvDtype) -> write.WriterCall:
    bench: Any = HostBench()
    return write.WriterCall(bench, SHAPE, Setup(dtype, cache, BLOCK_LEN, kv_dtype=kv_dtype))


every_kind = pytest.mark.parametrize("kv_dtype", KvDtype)


@pytest.fixture(autouse=True)
def one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "STREAM_BYTES", 1)


@every_kind
@pytest.mark.usefixtures("on_the_host")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("dtype", Dtype)
def test_what_the_oracle_writes_passes(dtype: Dtype, cache: Cache, kv_dtype: KvDtype) -> None:
    write.check(call_of(dtype, cache, kv_dtype))


@every_kind
@pytest.mark.usefixtures("on_the_host")
@pytest.mark.parametrize("cache", CACHES)
def test_a_row_that_is_not_written_is_found(
    cache: Cache, kv_dtype: KvDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "broken", True)
    with pytest.raises(BenchError, match=f"the writer of {kv_dtype} rows of 64 left wrong k rows"):
        write.check(call_of(Dtype.BF16, cache, kv_dtype))


def test_a_launch_reads_every_row_and_writes_what_is_kept_of_it() -> None:
    rows = 2 * sum(LENS) * 2  # of K and V of two heads
    assert write.moved_bytes(SHAPE, KvDtype.SAME) == rows * (128 + 128)
    assert write.moved_bytes(SHAPE, KvDtype.INT4) == rows * (128 + 32 + 4)
    assert codes.row_bytes(KvDtype.E4M3, 64) == 64


class TimedWriter:
    """A writer that moves 1 TB/s."""

    def __init__(self, bench: Any, shape: Shape, setup: Setup) -> None:
        self.shape, self.launches = shape, 8
        self.moved_bytes = write.moved_bytes(shape, setup.kv_dtype)
        self.ms = 8 * self.moved_bytes / 1e9

    def graph(self) -> TimedWriter:
        return self

    def __call__(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = TimedWriter(None, SHAPE, Setup(Dtype.F16))
    copy.ms = 2 * (512 << 20) / 2e9  # 2 TB/s
    monkeypatch.setattr(driver, "current_device", lambda: 0)
    monkeypatch.setattr(driver, "context_of_device", lambda _: Context())
    monkeypatch.setattr(write, "Bench", Clock)
    monkeypatch.setattr(write, "WriterCall", TimedWriter)
    monkeypatch.setattr(write, "_copy", lambda _: copy)
    monkeypatch.setattr(write, "check", lambda _: None)
    monkeypatch.setattr(write, "build", list)
    monkeypatch.setattr(machine, "clocks", lambda _: "SM 1980 MHz")
    monkeypatch.setattr(machine, "facts_of", lambda _: {"device": "A GPU", "date": "2026-01-31"})


@pytest.mark.usefixtures("clock")
def test_every_width_and_kind_has_a_line_and_is_shown_again(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = run("bench", "write", "--save", str(file))
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert ["128", "int8", "102", "101.7", "1.00", "50", "%"] in lines
    assert sum(line[-1:] == ["%"] for line in lines) == 2 * len(KvDtype)
    assert "a copy on the device: 2.00 to 2.00 TB/s, read and written" in done.out
    assert "16384 new tokens, 8 KV heads, paged cache, 64 tokens a block" in done.out
    again = run("bench", "show", str(file))
    assert set(done.out.splitlines()) <= {*again.out.splitlines(), "clocks before: SM 1980 MHz"}
    assert "| 64 same | 67 |" in run("bench", "show", str(file), "--markdown").out
    as_json = run("bench", "write", "--json")
    assert json.loads(as_json.out) == json.loads(file.read_text())
    assert run("bench", "show", str(file), "--plot", "x.png").code == 1


@pytest.mark.usefixtures("clock")
def test_a_width_without_a_writer_is_refused_in_one_line() -> None:
    done = run("bench", "write", "--head-dim", "100")
    assert done.code != 0
    assert "head_dim 100" in done.err and done.err.count("\n") == 1


def test_the_share_is_that_of_the_rate_of_a_copy() -> None:
    cell = WriteFigures("64 same", 3_000_000, 2.0, 2e12)
    assert (cell.rate, cell.share) == (1.5e12, 0.75)
