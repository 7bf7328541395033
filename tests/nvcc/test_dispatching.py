# SPDX-License-Identifier: Apache-2.0
"""dispatch.cpp on devices that there are not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc


@pytest.fixture
def printed(
    tree: Path,
    host_compiler: str,
    cuda_include: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> Callable[[str], list[str]]:
    """The lines that a program of this folder prints, beside dispatch.cpp."""

    def lines(name: str) -> list[str]:
        program = tmp_path / "dispatching"
        sources = (Path(__file__).with_name(name), tree / "src" / "dispatch.cpp")
        run(
            [
                *(host_compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror"),
                *("-I", tree, "-isystem", cuda_include, *sources, "-o", program),
            ]
        )
        return run([program]).stdout.splitlines()

    return lines


def test_tiles_that_a_device_has_no_room_for_are_neither_prepared_nor_taken(
    printed: Callable[[str], list[str]],
) -> None:
    assert printed("dispatching.cpp") == [
        "99 KiB: prepared small, taken small",
        "227 KiB: prepared small large, taken large",
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
