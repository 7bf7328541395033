# SPDX-License-Identifier: Apache-2.0
"""A skip names what is missing, and happens only where something is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.fixture
def conftest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The settings of the tests, on a machine with nothing."""
    spec = importlib.util.spec_from_file_location("settings_of_the_tests", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("ATTN_NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "DEFAULT_CUDA_HOME", str(tmp_path / "default"))
    return module


def make_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)


def test_a_machine_without_nvcc_is_told_where_it_was_looked_for(conftest: ModuleType) -> None:
    assert conftest.missing_nvcc() == "needs nvcc: not on PATH and CUDA_HOME is unset"


def test_a_cuda_home_without_nvcc_is_named(
    conftest: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert conftest.missing_nvcc() == (
        f"needs nvcc: not on PATH and CUDA_HOME is {tmp_path} and holds none"
    )


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("PATH", "nvcc"),
        ("CUDA_HOME", "bin/nvcc"),
        ("CUDA_PATH", "bin/nvcc"),
        ("", "default/bin/nvcc"),
    ],
)
def test_nvcc_is_found_wherever_the_runtime_finds_it(
    conftest: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, place: str
) -> None:
    make_program(tmp_path / place)
    make_program(tmp_path / "g++")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert conftest.missing_nvcc() is None


def test_nvcc_without_a_host_compiler_compiles_nothing(
    conftest: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_program(tmp_path / "nvcc")
    assert conftest.missing_nvcc() == "needs g++, which nvcc compiles with: not on PATH"
    conftest.missing_nvcc.cache_clear()
    monkeypatch.setenv("NVCC_CCBIN", "clang++")
    assert conftest.missing_nvcc() is None


def test_a_machine_without_a_driver_is_told_so(
    conftest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Callable[..., int]:
        raise OSError(name)

    monkeypatch.setattr(conftest.ctypes, "CDLL", absent)
    assert conftest.missing_gpu() == "needs gpu: no NVIDIA driver (libcuda.so.1 is not found)"
