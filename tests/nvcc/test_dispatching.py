# SPDX-License-Identifier: Apache-2.0
"""dispatch.cpp on devices that there are not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("dispatching.cpp")


def test_tiles_that_a_device_has_no_room_for_are_neither_prepared_nor_taken(
    tree: Path,
    host_compiler: str,
    cuda_include: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    program = tmp_path / "dispatching"
    sources = (SOURCE, tree / "src" / "dispatch.cpp")
    run(
        [
            *(host_compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror"),
            *("-I", tree, "-isystem", cuda_include, *sources, "-o", program),
        ]
    )
    assert run([program]).stdout.splitlines() == [
        "99 KiB: prepared small, taken small",
        "227 KiB: prepared small large, taken large",
    ]
