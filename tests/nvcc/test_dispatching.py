# SPDX-License-Identifier: Apache-2.0
"""dispatch.cpp on devices that there are not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc


@pytest.fixture(scope="module")
def printed(
    tree: Path,
    host_program: Callable[..., Path],
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[[str], list[str]]:
    """The lines that a program of this folder prints, beside dispatch.cpp."""

    @cache
    def lines(name: str) -> list[str]:
        sources = (Path(__file__).with_name(name), tree / "src" / "dispatch.cpp")
        program = host_program("-Wall", "-Wextra", "-Werror", *sources)
        return run([program]).stdout.splitlines()

    return lines


def test_tiles_that_a_device_has_no_room_for_are_neither_prepared_nor_taken(
    printed: Callable[[str], list[str]],
) -> None:
    assert printed("dispatching.cpp")[:2] == [
        "99 KiB: prepared small, taken small",
        "227 KiB: prepared small large, taken large",
    ]


def test_a_device_takes_the_latest_family_that_it_runs(printed: Callable[[str], list[str]]) -> None:
    assert printed("dispatching.cpp")[2:5] == [
        "capability 8.0: large",
        "capability 9.0: of Hopper",
        "capability 10.0: large",
    ]


def test_calls_are_split_as_far_as_a_workspace_goes_unless_they_say_how(
    printed: Callable[[str], list[str]],
) -> None:
    assert printed("dispatching.cpp")[5:] == [
        "7000 bytes, max_split_k 0, split_cnt 0: 7 splits, max_split_k 7",
        "6999 bytes, max_split_k 0, split_cnt 0: 6 splits, max_split_k 6",
        "2000 bytes, max_split_k 0, split_cnt 0: 2 splits, max_split_k 2",
        "1999 bytes, max_split_k 0, split_cnt 0: 1 splits, max_split_k 1",
        "0 bytes, max_split_k 0, split_cnt 0: 1 splits, max_split_k 1",
        "7000 bytes, max_split_k 5, split_cnt 0: 5 splits, max_split_k 5",
        "4999 bytes, max_split_k 5, split_cnt 0: 4 splits, max_split_k 4",
        "2999 bytes, max_split_k 0, split_cnt 3: workspace has 2999 bytes, and this call needs "
        "3000 (workspace_size): give more, or split less (fit_workspace, max_split_k)",
    ]


def test_decode_calls_of_many_rows_that_ask_for_attention_alone_go_to_prefill_kernels(
    printed: Callable[[str], list[str]],
) -> None:
    assert printed("many_rows.cpp") == [
        "many rows: prefill",
        "many rows: prefill",
        "many rows: prefill",
        "without a workspace: decode",
        "few rows: decode",
        "sinks: decode",
        "new rows: decode",
        "heads that share rows: decode",
        "pools of unknown bounds: decode",
        "a window: prefill",
        "a window: decode",
        "another device: decode",
    ]
