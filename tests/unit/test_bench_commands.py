# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench` from the command line to the report, with a clock in place of a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attn_codegen.config import Arch, Cache, Dtype, KvDtype
from attn_runtime import driver
from attn_runtime.bench import compile as compiling
from attn_runtime.bench import machine, oracle, peers, plot, prefill
from attn_runtime.bench.errors import BenchError, Unavailable
from attn_runtime.bench.key_stores import Layout
from attn_runtime.bench.report import Cell, Results
from attn_runtime.bench.shapes import Shape
from attn_runtime.process import run_and_weigh
from commands import run

RATES = {"64 full": 500.0, "128 full": 800.0, "256 full": 300.0}
COMMANDS = ("prefill", "write", "compile", "overhead", "show", "all")


class Clock:
    """A device whose calls take one second per 1e15 operations, and twice that for a peer."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def milliseconds(self, call: Any, repeats: int, host_s: float) -> float:
        return float(call.ms)

    def synchronize(self) -> None:
        pass


class Timed:
    """A call that knows how long it takes."""

    asked: list[tuple[Shape, Any]] = []  # noqa: RUF012  # of all instances

    def __init__(self, _: Any, shape: Shape, setup: Any, slower: float = 1.0) -> None:
        self.ms = slower * shape.flops / 1e12
        if slower == 1.0:
            self.asked.append((shape, setup))

    def __call__(self) -> None:
        pass


class SlowerOnCodes(Timed):
    """It takes a quarter longer."""

    def __init__(self, bench: Any, shape: Shape, setup: Any) -> None:
        super().__init__(bench, shape, setup)
        self.ms *= 1.0 if setup.kv_dtype is KvDtype.SAME else 1.25


class Context:
    class device:
        ordinal, name, capability, target = 0, "A GPU", (8, 0), "sm_80"
        shared_per_block = 166_912

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def peer_of(name: str, bench: Any, shape: Shape, setup: Any) -> peers.Contender:
    if name == "flash":
        raise Unavailable("takes sequences of one length")
    return peers.Contender(Timed(bench, shape, setup, 2.0), shape.flops)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Shape, Any]]:
    """Replaces the GPU; the shapes that are asked for."""
    monkeypatch.setattr(driver, "current_device", lambda: 0)
    monkeypatch.setattr(driver, "context_of_device", lambda _: Context())
    monkeypatch.setattr(prefill, "Bench", Clock)
    monkeypatch.setattr(prefill, "OurCall", Timed)
    monkeypatch.setattr(prefill, "build", lambda configs: [])
    monkeypatch.setattr(oracle, "spot_check", lambda call: 4)
    monkeypatch.setattr(peers, "build", peer_of)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "clocks", lambda _: "SM 1980 MHz")
    monkeypatch.setattr(machine, "facts_of", lambda _: {"device": "A GPU", "date": "2026-01-31"})
    monkeypatch.setattr(Timed, "asked", [])
    return Timed.asked


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_in_its_help(command: str) -> None:
    done = run("bench", command, "--help")
    assert done.code == 0
    assert f"attn-codegen bench {command}" in done.out.split("Example")[1]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["prefill", "write", "overhead"])
def test_without_a_gpu_one_sentence_says_so(command: str) -> None:
    done = run("bench", command)
    assert (done.code, done.out) == (1, "")
    assert done.err == ("attn-codegen: error: no NVIDIA GPU can be used: install the driver\n")


def test_the_paper_s_grid_is_one_option(clock: list[tuple[Shape, Any]]) -> None:
    done = run("bench", "prefill", "--grid", "fa3", "--peers", "cudnn")
    assert done.code == 0, done.err
    assert len(clock) == 36
    lines = done.out.splitlines()
    assert lines[0] == "A GPU, 2026-01-31"
    assert "clocks at work: SM 1980 MHz" in lines
    assert "x cudnn: geometric mean 2.000 of 36 cells, lowest 2.00 (64 full, 512)" in lines
    (heading,) = (line for line in lines if line.split() == ["512", "1k", "2k", "4k", "8k", "16k"])
    for row in ("64 full", "64 causal", "128 full", "128 causal", "256 full", "256 causal"):
        (line,) = (line for line in lines if line.startswith(f"{row} "))
        assert line.split()[2:] == ["TFLOP/s", *["1000"] * 6]
        assert len(line) == len(heading)


def test_a_model_a_cache_and_a_family_reach_every_call(clock: list[tuple[Shape, Any]]) -> None:
    done = run(
        *("bench", "prefill", "--model", "llama3-8b", "--cache", "paged", "--block-len", "16"),
        *("--arch", "sm80", "--dtype", "f16", "--mask", "causal", "--lengths", "1k,3000"),
        *("--batch", "2", "--peers", "none", "--layout", "hnd"),
    )
    assert done.code == 0, done.err
    assert "paged cache (hnd, 16 tokens a block), sm80 kernels" in done.out
    assert [shape.k_lens for shape, _ in clock] == [(1024, 1024), (3000, 3000)]
    for shape, setup in clock:
        assert (shape.heads.num_heads, shape.heads.num_kv_heads) == (32, 8)
        assert (setup.dtype, setup.cache, setup.block_len) == (Dtype.F16, Cache.PAGED, 16)
        assert (setup.arch, setup.layout) == (Arch.SM80, Layout.HND)


def test_quantised_caches_have_a_row_each_beside_the_plain_one(
    clock: list[tuple[Shape, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prefill, "OurCall", SlowerOnCodes)
    args = ("--head-dim", "64", "--mask", "full", "--lengths", "1k,2k", "--peers", "none")
    done = run("bench", "prefill", "--kv", "same,int8", *args, "--save", str(tmp_path / "run.json"))
    assert done.code == 0, done.err
    assert [setup.kv_dtype for _, setup in clock] == [KvDtype.SAME, KvDtype.INT8] * 2
    lines = [line.split() for line in done.out.splitlines()]
    at = lines.index(["64", "full", "TFLOP/s", "1000", "1000"])
    assert lines[at + 1 : at + 3] == [
        ["64", "full", "int8", "TFLOP/s", "800", "800"],
        ["x", "same", "0.80", "0.80"],
    ]
    assert "x same, int8: geometric mean 0.800 of 2 cells, lowest 0.80 (64 full, 1k)" in done.out
    again = run("bench", "show", str(tmp_path / "run.json"))
    assert sorted(again.out.splitlines()) == sorted(done.out.splitlines())


def test_a_quantised_cache_alone_is_compared_with_the_plain_one(
    clock: list[tuple[Shape, Any]],
) -> None:
    args = ("--mask", "full", "--lengths", "1k", "--peers", "cudnn")
    done = run("bench", "prefill", "--kv", "e4m3", *args)
    assert done.code == 0, done.err
    assert [setup.kv_dtype for _, setup in clock] == [KvDtype.SAME, KvDtype.E4M3]
    assert "x same, e4m3: geometric mean 1.000" in done.out
    assert "x cudnn, e4m3: geometric mean 2.000" in done.out


def test_a_peer_that_does_not_run_a_shape_is_a_dash_with_a_reason(
    clock: list[tuple[Shape, Any]],
) -> None:
    done = run("bench", "prefill", "--varlen", "--peers", "flash", "--lengths", "512")
    assert clock[0][0].token_num == 16_384
    lines = done.out.splitlines()
    assert any(line.split() == ["x", "flash", "-"] for line in lines)
    assert lines[-2:] == [
        "x flash: ran none of the shapes",
        "flash: takes sequences of one length",
    ]


def test_shapes_of_one_s_own_come_from_words_and_files(
    clock: list[tuple[Shape, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "shapes.txt"
    file.write_text("1x8x8x100x200x64\n")
    args = ("--shapes", str(file), "--shapes", "2x4x4x7x7x128", "--mask", "full")
    done = run("bench", "prefill", *args, "--peers", "cudnn")
    assert done.code == 0, done.err
    assert [shape.row for shape, _ in clock] == ["1x8x8x100x200x64 full", "2x4x4x7x7x128 full"]
    assert "1x8x8x100x200x64 full  TFLOP/s" in done.out


@pytest.mark.usefixtures("clock")
def test_saved_results_are_shown_again(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    args = ("--chunk", "512:32k", "--heads", "32", "--kv-heads", "8", "--peers", "cudnn")
    first = run("bench", "prefill", *args, "--save", str(file))
    assert first.code == 0, first.err
    again = run("bench", "show", str(file))
    assert sorted(again.out.splitlines()) == sorted(first.out.splitlines())
    as_json = run("bench", "prefill", *args, "--json")
    assert json.loads(as_json.out)["cells"] == json.loads(file.read_text())["cells"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "llama9"), "model 'llama9' is unknown: use one of gemma2-9b"),
        (("--model", "llama3-8b", "--heads", "4"), "--model fixes the heads"),
        (("--peers", "fa4"), "peer 'fa4' is unknown: use some of cudnn, flash"),
        (("--lengths", "x"), "length 'x' is no whole number from 1 on: write one, such as 64"),
        (("--shapes", "1x2"), "shape '1x2' is no shape"),
        (("--head-dim", "100"), "head_dim 100"),
        (
            ("--shapes", "1x2x2x1x1x64", "--varlen"),
            "--shapes leaves nothing for --varlen to choose",
        ),
        (
            ("--chunk", "1:2", "--lengths", "1k", "--batch", "2"),
            "nothing for --lengths and --batch",
        ),
        (("--batch", "2", "--varlen"), "--batch leaves nothing for --varlen to choose"),
        (("--grid", "fa3", "--head-dim", "64"), "--grid leaves nothing for --head-dim to choose"),
        (("--save", "/proc/no/run.json"), "nothing can be written to /proc/no ("),
        (("--layout", "hnd"), "leave it out for a linear cache"),
        (("--kv", "int8,int3"), "unknown kv_dtype 'int3': use same, int8, int4 or e4m3"),
    ],
)
def test_nonsense_is_refused_in_one_line(args: tuple[str, ...], said: str) -> None:
    done = run("bench", "prefill", *args)
    assert done.code != 0
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_peer_that_is_not_installed_is_named_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.choose(None) == []
    assert peers.choose("none") == []
    with pytest.raises(BenchError, match="peer fa3 needs flash_attn_interface"):
        peers.choose("fa3")


def test_a_picture_without_matplotlib_is_refused_before_anything_runs(
    clock: list[tuple[Shape, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.backend_bases"):  # other tests may have imported both
        monkeypatch.setitem(sys.modules, name, None)
    done = run("bench", "prefill", "--plot", "speed.png")
    assert done.code == 1
    assert "--plot needs matplotlib" in done.err
    assert "pip install matplotlib" in done.err
    assert not clock


def test_a_picture_of_an_unknown_format_is_refused_before_anything_runs(
    tmp_path: Path, clock: list[tuple[Shape, Any]]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: not installed")
    done = run("bench", "prefill", "--plot", str(tmp_path / "speed.tune"))
    assert ".tune is no format of matplotlib's: use one of " in done.err
    assert not clock


def test_a_picture_of_the_results_is_drawn(tmp_path: Path, clock: list[tuple[Shape, Any]]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: not installed")
    picture = tmp_path / "speed.png"
    done = run("bench", "prefill", "--grid", "fa3", "--peers", "cudnn", "--plot", str(picture))
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_line_of_a_picture_leaves_its_panel() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: not installed")
    cells = [Cell(row, "1k", {"ours": rate, "flash": rate / 2}, {}) for row, rate in RATES.items()]
    results = Results("prefill", ("flash",), {"device": "A GPU"}, {}, tuple(cells))
    panels = plot.figure_of(results).get_axes()
    shown = [rate for panel in panels for line in panel.get_lines() for rate in line.get_ydata()]
    assert sorted(shown) == sorted(rate for cell in cells for rate in cell.tflops.values())
    for panel in panels:
        assert panel.get_ylim()[0] == 0 and panel.get_ylim()[1] > max(RATES.values())


def test_the_memory_of_a_process_is_that_of_its_largest_part(tmp_path: Path) -> None:
    child = "x = bytearray(400_000_000); print(len(x))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = run_and_weigh((sys.executable, "-c", code), tmp_path)
    assert done.code == 0
    assert done.output.strip() == "400000000"
    assert 400_000_000 < done.peak_bytes < 600_000_000


def test_a_process_smaller_than_this_one_has_no_known_peak(tmp_path: Path) -> None:
    assert run_and_weigh(("true",), tmp_path).peak_bytes == 0


def test_the_costs_of_compiling_are_a_line_per_unit_and_a_sum() -> None:
    costs = [
        compiling.Cost("one", "sm_90", 1.5, 200_000_000, 80_000, 168, 0),
        compiling.Cost("another", "sm_90", 2.5, 100_000_000, 40_000, 255, 8),
    ]
    _, _, first, second, total, whole = compiling.text(compiling.Costs(tuple(costs), 2, 2.6))
    assert first.split() == ["one", "1.50", "200", "80.0", "168", "0"]
    assert second.split() == ["another", "2.50", "100", "40.0", "255", "8"]
    assert total == (
        "2 units, one core each: 4.0 s in total, median 2.00 s, slowest 2.50 s, "
        "largest 200 MB, 1 with spills"
    )
    assert whole == "2 jobs took 2.6 s: 1.30 s a unit"
