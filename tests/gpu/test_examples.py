# SPDX-License-Identifier: Apache-2.0
"""The examples that decode and the operator, in Python and in C++: what they print is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attn_runtime.build import default_target
from cmake_project import Project, checked, emit, missing_cmake

pytestmark = pytest.mark.gpu

WATCHDOG_S = 300
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = (
    "prefill_sm80_bf16_d128_linear_causal",
    "decode_sm80_bf16_int8_d128_paged_causal",
    "write_sm80_bf16_int8_d128_paged",
)
LIMIT = 2 * 8 * 2**-9
"""P and the output are rounded to bf16, by up to 2^-9 each, and V is below 8."""


def errors_of(*command: object) -> list[float]:
    """What a program prints at the end of each line."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line.split()[-1]) for line in done.stdout.splitlines()]


def test_the_loop_of_speculated_steps_is_right_after_its_last_replay() -> None:
    errors = errors_of(sys.executable, EXAMPLES / "decode_loop.py")
    assert len(errors) == 3
    assert max(errors) < LIMIT


def test_an_operator_of_torch_is_right_within_a_compiled_layer() -> None:
    errors = errors_of(sys.executable, EXAMPLES / "torch_operator.py")
    assert len(errors) == 3
    assert max(errors) < 2 * LIMIT  # the layer doubles its output


@pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or "")
def test_steps_of_two_streams_are_right_after_their_last_replay(tmp_path: Path) -> None:
    folder = emit(tmp_path / "generated", NAMES)
    project = Project(EXAMPLES / "cpp_decode", tmp_path / "build")
    architecture = f"{default_target().removeprefix('sm_')}-real"
    checked(project.configure(ATTN_FOLDER=folder, CMAKE_CUDA_ARCHITECTURES=architecture))
    project.make()
    errors = errors_of(project.build / "attn_decode_example")
    assert len(errors) == 2
    assert max(errors) < LIMIT
