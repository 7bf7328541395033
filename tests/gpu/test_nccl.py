# SPDX-License-Identifier: Apache-2.0
"""Ranks on GPUs of their own, one process each, over NCCL."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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
PROCESS_S = 120
PROGRAM = Path(__file__).parent / "rank_process.py"


@pytest.mark.parametrize(
    "scenario", ["problems", "scattered", "in_flight", "in_rounds", "captured", "ring", "nccl4py"]
)
def test_ranks_give_the_whole_attention(scenario: str) -> None:
    if scenario == "nccl4py" and find_spec("nccl") is None:
        pytest.skip("needs nccl4py: it is not installed")
    for status, text in run_ranks(scenario, GPUS):
        assert status == 0 and text.endswith("right\n"), text


@pytest.mark.parametrize("scenario", ["failing", "absent"])
def test_a_rank_that_fails_is_reported_within_the_timeout_and_nothing_hangs(scenario: str) -> None:
    *others, (status, text) = run_ranks(scenario, GPUS)
    assert status == 7 and "leaves" in text, text
    for code, said in others:
        assert code == 0, said
        assert "told after" in said and "Another rank failed" in said, said
        seconds = float(said.split("told after ")[1].split(" s")[0])
        assert 2.5 < seconds < 20, said
        assert "the GPU was free after 0" in said or "the GPU was free after 1" in said, said


def run_ranks(scenario: str, size: int) -> list[tuple[int, str]]:
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
            [sys.executable, PROGRAM, scenario],
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
            pytest.fail(f"a rank of {scenario} did not end in {PROCESS_S} s:\n{text}")
        found.append((process.returncode, text))
    return found
