# SPDX-License-Identifier: Apache-2.0
"""A small subset, clean under compute-sanitizer: C++ programs, so that only our kernels run.

A CTA computes one or two tiles here: with three, racecheck reports reads of items that are ordered
in a way it does not follow (attn/sm90/shared_storage.cuh says how).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cpp_program import (
    CLUSTERS,
    build_cache_program,
    build_program,
    kernel_called,
    names_on,
    write_call,
)

from attn_codegen.config import Arch, Cache, Mode
from attn_runtime.build import default_target
from attn_runtime.plan import SplitPolicy
from attn_runtime.toolchain import find_nvcc
from cases import Task, batch_for

pytestmark = [pytest.mark.gpu, pytest.mark.sanitize]

WATCHDOG_S = 300
OPTIONS = {
    "memcheck": ["--leak-check", "no"],
    "racecheck": ["--racecheck-report", "all"],
    "initcheck": [],
    "synccheck": [],
}
SPLITS = (SplitPolicy.off(), SplitPolicy.fixed(3), SplitPolicy.fixed_size(64))
DECODE_SPLITS = (SplitPolicy.heuristic(), SplitPolicy.fixed(3), SplitPolicy.fixed_size(64))


@pytest.fixture(scope="module")
def sanitizer() -> str:
    beside = find_nvcc().nvcc.resolve().with_name("compute-sanitizer")
    found = shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)
    if found is None:
        pytest.skip(f"needs compute-sanitizer: not on PATH and not beside nvcc ({beside.parent})")
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(tmp_path_factory.mktemp("sanitize"), default_target())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Calls of every cache, split and not: windows, empty sequences, tails of tiles and blocks."""
    made = []
    for name in names_on(default_target()):
        kernel = kernel_called(name)
        if name == CLUSTERS:
            made.append(tmp_path_factory.mktemp(name) / "clusters")
            batch = batch_for(kernel, [3, 1, 2, 8], [2500, 300, 0, 60], num_kv_heads=1)
            write_call(made[-1], kernel, Task(batch, split=SplitPolicy.heuristic(max_split_k=4)))
            continue
        is_decode = kernel.config.mode is Mode.DECODE
        longest = 6 if is_decode else kernel.cta_q + 2
        for index, split in enumerate(DECODE_SPLITS if is_decode else SPLITS):
            finished = (False, False, False, False, index == 1)
            batch = batch_for(
                kernel,
                [longest, 1, 5, 0, 3],
                [longest + 68, 300, 0, 9, 33],
                window=(0, 100, 0)[index],
                num_heads=3,
                num_kv_heads=1,
                finished=finished,
                sinks=(0.5, -1.0, 3.0) if is_decode else (),
            )
            # Hopper kernels read blocks of 64 tokens by TMA, share those of 16 among warps, and
            # gather those of 7.
            reads_blocks = kernel.config.cache is not Cache.LINEAR
            several = kernel.config.arch is Arch.SM90 and reads_blocks
            for block_len in (64, 16, 7) if several else (7,):
                folder = tmp_path_factory.mktemp(name) / str(index)
                task = Task(batch, block_len=block_len, q_padding=8, split=split)
                write_call(folder, kernel, task)
                made.append(folder)
    return made


@pytest.fixture(scope="module")
def cache_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cache_program(tmp_path_factory.mktemp("caches"), default_target())


@pytest.mark.parametrize("tool", OPTIONS)
def test_tool_finds_nothing(tool: str, sanitizer: str, program: Path, folders: list[Path]) -> None:
    need_clean(tool, sanitizer, [program, *folders])


@pytest.mark.parametrize("tool", OPTIONS)
def test_tool_finds_nothing_where_caches_are_written_and_quantised(
    tool: str, sanitizer: str, cache_program: Path
) -> None:
    need_clean(tool, sanitizer, [cache_program])


def need_clean(tool: str, sanitizer: str, run: list[Path]) -> None:
    command = [sanitizer, "--tool", tool, *OPTIONS[tool], "--error-exitcode", "9"]
    done = subprocess.run(
        [*command, *map(str, run)], capture_output=True, text=True, timeout=280, check=False
    )
    report = done.stdout + done.stderr
    head = "\n".join(report.splitlines()[:40])
    if done.returncode or "0 errors" not in report or "hazard detected" in report:
        pytest.fail(f"{tool}: exit code {done.returncode}\n{head}", pytrace=False)
