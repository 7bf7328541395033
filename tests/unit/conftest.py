# SPDX-License-Identifier: Apache-2.0
"""A compiler that is none, a machine without a GPU, and headers of the kernels, compiled for the
host: what tests ask their C++ side by."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_codegen.renderer import headers
from attn_runtime import driver, toolchain
from attn_runtime.errors import DriverError
from fake_nvcc import FakeNvcc, make_fake_nvcc

FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-D__device__=", "-D__forceinline__=inline")


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvcc:
    """The compiler at hand; the cache is below `cache`."""
    fake = make_fake_nvcc(tmp_path / "nvcc")
    monkeypatch.setenv("ATTN_NVCC", str(fake.path))
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "_known", {})
    return fake


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""

    def refuse() -> int:
        raise DriverError("no NVIDIA GPU can be used: install the driver")

    monkeypatch.setattr(driver, "current_device", refuse)


@pytest.fixture(scope="module")
def compile_main(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compiles a main() against the rendered headers with the host compiler."""
    given = shlex.split(os.environ.get("CXX", ""))
    compilers = [given] if given else [["g++"], ["c++"]]
    compiler = next((words for words in compilers if shutil.which(words[0])), None)
    if compiler is None:
        pytest.skip("needs a host C++ compiler: CXX is unset or names none, no g++ or c++ on PATH")
    folder = tmp_path_factory.mktemp("twin")
    for path, text in headers().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    def compile_source(name: str, source: str) -> Path:
        program = folder / name
        (folder / f"{name}.cpp").write_text(source)
        subprocess.run(
            [*compiler, *FLAGS, "-O1", "-I", folder, "-o", program, f"{program}.cpp"],
            check=True,
        )
        return program

    return compile_source
