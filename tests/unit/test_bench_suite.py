# SPDX-License-Identifier: Apache-2.0
"""`bench all` runs what the documents quote, and makes one page of what was saved."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_bench_decode import RESULTS as DECODED
from test_bench_report import RESULTS as PREFILLED

from attn_runtime.bench import peers, suite
from attn_runtime.bench import results as files
from attn_runtime.bench.overhead_report import OverheadResults
from attn_runtime.bench.results import AnyResults
from attn_runtime.bench.suite import STEPS
from commands import run

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "speed" / suite.PAGE)
CALLED = OverheadResults("host microseconds", PREFILLED.facts, {"a call": 10.4}, {"torch": "none"})
SAVED: dict[str, AnyResults] = {"prefill": PREFILLED, "decode": DECODED, "overhead": CALLED}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were started: those of SAVED leave their results, others fail."""
    found: list[str] = []

    def start(command: list[str], **_: Any) -> SimpleNamespace:
        saved = Path(command[-1])
        found.append(" ".join(command[1:-2]))
        if saved.stem in SAVED:
            files.save(SAVED[saved.stem], saved)
        return SimpleNamespace(returncode=0 if saved.stem in SAVED else 1)

    monkeypatch.setattr(subprocess, "run", start)
    return found


def test_the_documents_quote_every_command() -> None:
    text = " ".join(" ".join(path.read_text("utf-8").split()) for path in DOCUMENTS)
    missing = [step.command for step in STEPS if f"`attn-codegen bench {step.command}`" not in text]
    assert missing == []


def test_the_readme_has_the_figures_of_the_page() -> None:
    readme, page = (path.read_text("utf-8") for path in DOCUMENTS)
    speed = readme.split("\n## Speed\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in speed if line.startswith("|")]
    assert len(rows) > 50
    assert [line for line in rows if line not in page.splitlines()] == []


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_command_takes_the_options_that_it_is_given(
    step: suite.Step, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    done = run(*suite.line_of(step, 3).split()[1:])
    assert done.err == "attn-codegen: error: no NVIDIA GPU can be used: install the driver\n"


def test_every_command_runs_and_one_page_has_what_was_measured(
    started: list[str], tmp_path: Path
) -> None:
    done = run("bench", "all", "--out", str(tmp_path / "speed"))
    assert done.code == 1
    assert len(started) == len(STEPS)
    assert started[0] == "-m attn_codegen bench prefill --grid fa3 --peers cudnn --rounds 3"
    assert started[-1] == "-m attn_codegen bench overhead"
    assert "attn-codegen bench write --rounds 3 failed" in done.err
    assert "attn-codegen bench overhead failed" not in done.err
    page = (tmp_path / "speed" / suite.PAGE).read_text()
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == [step.title for step in STEPS if step.name in SAVED]
    for results in SAVED.values():
        rows = [line for line in files.body(results, markdown=True) if line.startswith("|")]
        assert "\n".join(rows) in page
        assert results.facts["device"] in page


def test_some_commands_are_run_again_and_the_page_keeps_the_others(
    started: list[str], tmp_path: Path
) -> None:
    files.save(PREFILLED, tmp_path / "prefill.json")
    done = run("bench", "all", "--out", str(tmp_path), "--only", "decode", "--rounds", "1")
    assert (done.code, done.err) == (0, "")
    assert started == ["-m attn_codegen bench decode --peers flash --rounds 1"]
    page = (tmp_path / suite.PAGE).read_text()
    assert "## Prefill by sequence length\n" in page and "## Decode\n" in page


def test_a_command_that_fails_leaves_no_earlier_results(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "write.json").write_text("of last year")
    assert run("bench", "all", "--out", str(tmp_path), "--only", "write").code == 1
    assert list(tmp_path.iterdir()) == [], "and no page of nothing"


def test_the_page_is_written_again_without_a_gpu(started: list[str], tmp_path: Path) -> None:
    files.save(CALLED, tmp_path / "overhead.json")
    assert run("bench", "all", "--out", str(tmp_path), "--no-run").code == 0
    assert "| a call | 10.4 |" in (tmp_path / suite.PAGE).read_text()
    assert started == []


def test_the_list_is_what_a_user_would_type(started: list[str]) -> None:
    done = run("bench", "all", "--list", "--rounds", "5")
    assert len(done.out.splitlines()) == len(STEPS)
    assert "attn-codegen bench decode --peers flash --rounds 5" in done.out
    assert started == []


def test_an_unknown_name_is_refused_in_one_line() -> None:
    done = run("bench", "all", "--only", "decod", "--list")
    assert done.code == 1
    assert done.err.startswith("attn-codegen: error: --only decod is unknown: use some of prefill,")
