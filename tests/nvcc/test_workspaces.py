# SPDX-License-Identifier: Apache-2.0
"""What set_workspace makes of a plan, on the host alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("workspaces.cpp")


@pytest.fixture(scope="module")
def lines(
    host_program: Callable[..., Path],
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> list[str]:
    return run([host_program(SOURCE)]).stdout.splitlines()


def test_splits_are_bounded_by_their_plan_and_ranges_of_decode_by_the_caller(
    lines: list[str],
) -> None:
    assert lines[:4] == [
        "prefill: max_split_k 3",
        "persistent prefill: max_split_k 3",
        "decode of whole splits: max_split_k 3",
        "decode of ranges: max_split_k 7",
    ]


def test_what_ranks_gather_begins_with_the_part_of_rank_0(lines: list[str]) -> None:
    """Rank 2 of parts of 100 floats has its own 800 bytes behind it: outputs come first in a part,
    which is (max, sum) alone where outputs are added up."""
    assert lines[4:6] == [
        "complete: partial_O 0, partial_ML 256, cp_O 1312, cp_ML 1600, parts 512 of 100 floats",
        "scaled: partial_O 0, partial_ML 256, cp_O 2048, cp_ML 1312, parts 512 of 100 floats",
    ]


def test_without_a_workspace_only_a_call_that_says_how_may_be_split(lines: list[str]) -> None:
    """It is refused then: what was asked for is not done in silence in another way."""
    assert lines[6:] == [
        "the planner's choice without a workspace: at most 1",
        "the planner's choice: at most 7",
        "a count without a workspace: at most 7",
        "a size without a workspace: at most 7",
    ]
