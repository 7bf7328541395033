# SPDX-License-Identifier: Apache-2.0
"""Ranks on GPUs of their own, one process each, over NCCL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from reference_torch import torch

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs: {GPUS} visible"),
]
WATCHDOG_S = 300
PROCESS_S = 240
PROGRAM = Path(__file__).parent / "rank_process.py"
SCENARIOS = (
    "problems",
    "scattered",
    "in_flight",
    "in_rounds",
    "captured",
    "growing",
    "ring",
    "nccl4py",
)
"""What ranks do that all stay."""


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> list[str]:
    """What each rank says of those of SCENARIOS that the session tests, in one run of all."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = {item.callspec.params.get("scenario") for item in items if hasattr(item, "callspec")}
    names = [name for name in SCENARIOS if name in asked and not is_missing(name)]
    return [text for _, text in run_ranks(names, GPUS)]


def is_missing(scenario: str) -> bool:
    return scenario == "nccl4py" and find_spec("nccl") is None


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_give_the_whole_attention(scenario: str, said: list[str]) -> None:
    if is_missing(scenario):
        pytest.skip("needs nccl4py: it is not installed")
    for text in said:
        assert f"{scenario} right\n" in text, text


@pytest.mark.parametrize("scenario", ["failing", "failing_replay", "absent"])
def test_a_rank_that_fails_is_reported_within_the_timeout_and_nothing_hangs(scenario: str) -> None:
    *others, (status, text) = run_ranks([scenario], GPUS)
    assert status == 7 and "leaves" in text, text
    for code, told in others:
        assert code == 0, told
        assert "told after" in told and "Another rank failed" in told, told
        seconds = float(told.split("told after ")[1].split(" s")[0])
        assert 2.5 < seconds < 20, told
        assert "the GPU was free after 0" in told or "the GPU was free after 1" in told, told


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake: it is not on PATH")
def test_the_example_in_cpp_agrees_with_the_formula_on_every_rank(tmp_path: Path) -> None:
    wheel = find_spec("nvidia.nccl") if find_spec("nvidia") else None  # torch brings it along
    root = next(iter((wheel and wheel.submodule_search_locations) or []), "")  # else the system's
    example = Path(__file__).parents[2] / "examples" / "cpp_nccl"
    options = [f"-DNCCL_ROOT={root}", "-DCMAKE_CUDA_ARCHITECTURES=native"]
    library_path = os.pathsep.join([f"{root}/lib", os.environ.get("LD_LIBRARY_PATH", "")])
    for command in (
        ["cmake", "-S", example, "-B", tmp_path, *options],
        ["cmake", "--build", tmp_path, "--parallel", "4"],
        [tmp_path / "attn_nccl_example"],
    ):
        done = subprocess.run(
            command,
            env=os.environ | {"LD_LIBRARY_PATH": library_path, "NCCL_NVLS_ENABLE": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PROCESS_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if "rank" in line]
    assert len(errors) == GPUS and max(errors) < 2e-3, done.stdout


def run_ranks(scenarios: Sequence[str], size: int) -> list[tuple[int, str]]:
    """(exit status, what it said) of each rank; one that does not end is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(size), "NCCL_NVLS_ENABLE": "0"}
    paths = [str(PROGRAM.parent), *sys.path]
    common["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    started = [
        subprocess.Popen(
            [sys.executable, PROGRAM, *scenarios],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    found = []
    for process in started:
        try:
            text, _ = process.communicate(timeout=PROCESS_S)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
            text, _ = process.communicate()
            pytest.fail(f"a rank of {scenarios} did not end in {PROCESS_S} s:\n{text}")
        found.append((process.returncode, text))
    return found
