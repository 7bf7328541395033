# SPDX-License-Identifier: Apache-2.0
"""What a call of the C++ API costs the host, beside a launch of an empty kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from attn_runtime.build import default_target
from cmake_project import Project, checked, emit, missing_cmake

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

WATCHDOG_S = 240
PROGRAM = Path(__file__).with_name("overhead")
NAMES = ("prefill_sm80_bf16_d128_linear_causal", "prefill_sm90_bf16_d128_linear_causal")
LIMIT_US = 4.0
"""Of invokeAttention beyond the launch itself."""
TRIES = 3
"""Another process may take the core away during one of them."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = emit(tmp_path_factory.mktemp("overhead") / "generated", NAMES)
    project = Project(PROGRAM, folder.with_name("build"))
    architecture = f"{default_target().removeprefix('sm_')}-real"
    checked(project.configure(ATTN_FOLDER=folder, CMAKE_CUDA_ARCHITECTURES=architecture))
    project.make()
    return project.build / "overhead"


def test_a_call_from_cpp_costs_the_host_little_more_than_its_launch(program: Path) -> None:
    least: dict[str, float] = {}
    for _ in range(TRIES):
        done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            family, launch, invoke, dispatch = line.split()
            print(f"{family}: launch {launch} us, invoke {invoke} us, dispatch {dispatch} us")
            beyond = float(invoke) - float(launch)
            least[family] = min(least.get(family, beyond), beyond)
    assert max(least.values()) <= LIMIT_US, least
