# SPDX-License-Identifier: Apache-2.0
"""C++ launches a cache writer with the grid of attn_runtime.write_call."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_runtime.write_call import MOST_ROWS, write_grid

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("write_grids.cpp")


def expected(tokens: int, heads: int, step: int, ctas: int) -> str:
    rows = tokens * heads
    return "token_num" if rows > MOST_ROWS else str(write_grid(rows, step, ctas))


def test_cpp_and_python_give_the_same_grids_and_refusals(
    host_program: Callable[..., Path],
) -> None:
    rng = random.Random(0)
    steps, ctas = (16, 32, 64), (1, 264, 1056, 2112)
    cases = [
        (int(2 ** rng.uniform(0, 31)), rng.choice((1, 8, 40)), rng.choice(steps), rng.choice(ctas))
        for _ in range(600)
    ]
    cases += [(turns * 264 * 16 + one, 1, 16, 264) for turns in (1, 2, 3, 4) for one in (-1, 0, 1)]
    text = "\n".join(" ".join(map(str, case)) for case in cases)
    done = subprocess.run(
        [host_program(SOURCE)], input=text, capture_output=True, text=True, check=True
    )
    answers = done.stdout.splitlines()
    assert answers == [expected(*case) for case in cases]
    assert "token_num" in answers, "cases must cover calls of too many rows"
