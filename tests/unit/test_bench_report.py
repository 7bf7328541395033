# SPDX-License-Identifier: Apache-2.0
"""What `bench` prints, and that JSON brings it back."""

from __future__ import annotations

import json

import pytest

from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.report import Cell, Results, summary
from attn_runtime.bench.results import text

FACTS = {"date": "2026-01-31", "device": "A GPU", "driver": "580.1", "nvcc": "13.0"}


def cell(row: str, column: str, ours: float, peer: float | None, why: str = "") -> Cell:
    rates = {"ours": ours} | ({} if peer is None else {"cudnn": peer})
    missing = {"cudnn": why} if why else {}
    return Cell(row, column, rates, {name: 1.0 for name in rates}, missing)


CELLS = (
    cell("64 full", "512", 450.4, 360.0),
    cell("64 full", "16k", 600.0, 480.0),
    cell("128 causal", "512", 340.0, 425.0),
    cell("128 causal", "16k", 1020.6, None, "no room"),
)
RESULTS = Results("prefill, bf16", ("cudnn",), FACTS, {"before": "SM 1980 MHz"}, CELLS)


def test_a_report_says_what_on_what_and_every_cell() -> None:
    assert text(RESULTS).splitlines() == [
        "A GPU, 2026-01-31",
        "driver 580.1, nvcc 13.0",
        "prefill, bf16",
        "clocks before: SM 1980 MHz",
        "",
        "                           512   16k",
        "64 full     TFLOP/s        450   600",
        "            x cudnn       1.25  1.25",
        "128 causal  TFLOP/s        340  1021",
        "            x cudnn       0.80     -",
        "",
        "x cudnn: geometric mean 1.078 of 3 cells, lowest 0.80 (128 causal, 512)",
        "cudnn: no room",
    ]


def test_markdown_has_the_same_figures() -> None:
    lines = text(RESULTS, markdown=True).splitlines()
    assert "| 64 full | TFLOP/s | 450 | 600 |" in lines
    assert "|  | x cudnn | 0.80 | - |" in lines
    assert lines[lines.index("|  |  | 512 | 16k |") + 1] == "| --- | --- | --- | --- |"


def test_json_brings_a_report_back() -> None:
    again = Results.from_json(json.loads(json.dumps(RESULTS.to_json())))
    assert again == RESULTS


@pytest.mark.parametrize("data", [[], {}, {"schema": "something else"}])
def test_data_of_another_kind_is_refused(data: object) -> None:
    with pytest.raises(BenchError, match="holds no results"):
        Results.from_json(data)


def test_a_peer_that_ran_nothing_is_said_to_have_run_nothing() -> None:
    assert summary(CELLS, "fa3") == "x fa3: ran none of the shapes"
