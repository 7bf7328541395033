# SPDX-License-Identifier: Apache-2.0
"""A folder of exported kernels on a machine with a GPU and without nvcc."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attn_codegen.config import Arch, AttentionConfig, reduction_of
from attn_runtime.build import default_target
from attn_runtime.cache import open_cache
from attn_runtime.kernel_folder import export

pytestmark = pytest.mark.gpu

WATCHDOG_S = 120
EXAMPLE = Path(__file__).parents[2] / "examples" / "llama_batch.py"
CONFIG = AttentionConfig.parse("prefill_sm80_bf16_d128_paged_causal")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The kernel of the example, as this GPU's best family has it."""
    target = default_target()
    config = replace(CONFIG, arch=Arch.SM90) if target == "sm_90" else CONFIG
    export([config, reduction_of(config)], target, tmp_path / "kernels", open_cache())
    return tmp_path / "kernels"


def without_nvcc(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A process that has no compiler and an empty cache."""
    environment = {
        "ATTN_KERNEL_DIR": str(folder),
        "ATTN_NVCC": str(folder / "no-such-nvcc"),
        "ATTN_CACHE_DIR": str(folder / "cache"),
    }
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_example_runs_from_an_exported_folder_alone(folder: Path) -> None:
    done = without_nvcc(folder, str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("largest error") == 3


def test_a_kernel_that_was_not_exported_is_named_with_the_command_that_exports_it(
    folder: Path,
) -> None:
    code = "from attn_runtime import Attention; Attention(num_heads=8, head_dim=64).prepare()"
    done = without_nvcc(folder, "-c", code)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "KernelFolderError" in last
    assert f"is not in {folder}" in last
    assert f"--target {default_target()} --export {folder}" in last
