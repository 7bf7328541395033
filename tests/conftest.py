# SPDX-License-Identifier: Apache-2.0
"""Markers for what a test needs, and skips that name what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

DEFAULT_CUDA_HOME = "/usr/local/cuda"
MARKERS = {
    "nvcc": "needs the CUDA compiler",
    "gpu": "needs an NVIDIA GPU, the CUDA compiler, PyCUDA and cuda-bindings",
    "sanitize": "small enough to run under compute-sanitizer",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-units",
        action="store_true",
        help="nvcc tests compile every unit of the default preset, not a sample",
    )
    parser.addoption(
        "--update-golden", action="store_true", help="write what was printed into tests/golden"
    )


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs: dict[str, Callable[[], str | None]] = {"nvcc": missing_nvcc, "gpu": missing_gpu}
    for item in items:
        for marker, missing in needs.items():
            reason = missing() if item.get_closest_marker(marker) else None
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def all_units(request: pytest.FixtureRequest) -> bool:
    """True when the whole preset is asked for."""
    return bool(request.config.getoption("--all-units"))


@cache
def missing_nvcc() -> str | None:
    """What keeps nvcc from compiling, which is looked for where the runtime does; None when nothing
    does."""
    places = [os.environ.get("ATTN_NVCC", ""), shutil.which("nvcc") or ""]
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places += [f"{home}/bin/nvcc" for home in (*homes, DEFAULT_CUDA_HOME) if home]
    if any(place and Path(place).is_file() for place in places):
        has_host_compiler = os.environ.get("NVCC_CCBIN") or shutil.which("g++")
        return None if has_host_compiler else "needs g++, which nvcc compiles with: not on PATH"
    home = next((home for home in homes if home), None)
    where = f"CUDA_HOME is {home} and holds none" if home else "CUDA_HOME is unset"
    return f"needs nvcc: not on PATH and {where}"


@cache
def missing_gpu() -> str | None:
    """What keeps a GPU test from running; None when nothing does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs gpu: no NVIDIA driver (libcuda.so.1 is not found)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "needs gpu: the NVIDIA driver finds no device"
    for module, package in (("pycuda", "pycuda"), ("cuda.bindings", "cuda-bindings")):
        if not _is_importable(module):
            return f"needs {package}: it is not installed (pip install '.[runtime]')"
    return missing_nvcc()


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
