# SPDX-License-Identifier: Apache-2.0
"""The cubin cache with the real compiler, as a user's first and second process meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.nvcc

ROOT = Path(__file__).parents[2]
NAME = "reduce_sm80_bf16_d16"


def build(cache: Path, **environment: str) -> dict[str, Any]:
    """One `attn-codegen build` of one kernel, in a process of its own."""
    roots = (str(ROOT / name) for name in ("codegen", "runtime", "templates"))
    done = subprocess.run(
        [sys.executable, "-m", "attn_codegen", "build", NAME, "--target", "sm_90", "--json"],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(roots), "ATTN_CACHE_DIR": str(cache)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def test_a_second_process_takes_the_cubin_of_the_first_even_where_nvcc_is_gone(
    tmp_path: Path,
) -> None:
    cold, warm = build(tmp_path), build(tmp_path)
    assert (cold["from"], warm["from"]) == ("nvcc", "cache")
    gone = build(tmp_path, ATTN_NVCC=str(tmp_path / "no-such-nvcc"))
    assert gone["from"] == "cache"
    assert cold["registers"] == warm["registers"] == gone["registers"] > 0
