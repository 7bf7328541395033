# SPDX-License-Identifier: Apache-2.0
"""CMake projects that tests configure and build, and folders of kernels for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from attn_codegen import presets, renderer, writer
from attn_codegen.config import AttentionConfig
from attn_runtime.toolchain import find_nvcc

LEAST_CMAKE = (3, 24)
JOBS = str(len(os.sched_getaffinity(0)))


@cache
def missing_cmake() -> str | None:
    """What keeps CMake projects from being built; None when nothing does."""
    program = shutil.which("cmake")
    if program is None:
        return "needs cmake: not on PATH"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < LEAST_CMAKE:
        return f"needs cmake {'.'.join(map(str, LEAST_CMAKE))}: {program} is {said.splitlines()[0]}"
    if not shutil.which("ninja") and not shutil.which("make"):
        return "needs ninja or make: neither is on PATH"
    return None


def emit(folder: Path, names: Iterable[str], namespace: str = "attn") -> Path:
    """A folder of the named kernels, as `attn-codegen emit` writes it."""
    configs = presets.with_reductions(map(AttentionConfig.parse, names))
    writer.write(renderer.render(configs, namespace=namespace), folder)
    return folder


@dataclass(frozen=True, slots=True)
class Project:
    """A source folder and its build folder."""

    source: Path
    build: Path

    def configure(self, **options: object) -> subprocess.CompletedProcess[str]:
        """Configure with cache entries, the first time for devices of 8.0 unless told otherwise."""
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        entries: dict[str, object] = {}
        if not (self.build / "CMakeCache.txt").exists():
            entries = {
                "CMAKE_CUDA_COMPILER": find_nvcc().nvcc,
                "CMAKE_CUDA_ARCHITECTURES": "80-real",
            }
        words = [f"-D{name}={value}" for name, value in (entries | options).items()]
        return _run(["cmake", *generator, "-S", str(self.source), "-B", str(self.build), *words])

    def make(self, *arguments: str) -> str:
        """Build; what was printed."""
        return checked(_run(["cmake", "--build", str(self.build), "-j", JOBS, *arguments]))

    def install(self, prefix: Path) -> Path:
        """Install to a prefix."""
        checked(_run(["cmake", "--install", str(self.build), "--prefix", str(prefix)]))
        return prefix

    def run(self, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the build folder, with no GPU to be seen."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        return _run([str(self.build / program)], env=os.environ | hidden | environment)


def checked(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that must succeed."""
    if done.returncode:
        pytest.fail(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that must fail says, on one line."""
    assert done.returncode, f"{' '.join(done.args)} succeeded"
    return " ".join((done.stdout + done.stderr).split())


def _run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)
