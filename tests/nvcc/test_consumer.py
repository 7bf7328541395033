# SPDX-License-Identifier: Apache-2.0
"""A C++ program that uses a generated folder: host compiler, units, link, run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_runtime.toolchain import Toolchain

pytestmark = pytest.mark.nvcc

Run = Callable[..., subprocess.CompletedProcess[str]]
SOURCE = Path(__file__).with_name("consumer.cpp")
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror")


def test_the_public_headers_compile_with_a_host_compiler_alone(
    tree: Path, host_compiler: str, cuda_include: Path, run: Run, tmp_path: Path
) -> None:
    includes = ("-I", tree, "-isystem", cuda_include)
    run([host_compiler, *STRICT, *includes, "-c", SOURCE, "-o", tmp_path / "consumer.o"])


@pytest.mark.parametrize("header", ["attention", "config", "error", "params", "plan", "types"])
def test_each_public_header_stands_alone(
    tree: Path, host_compiler: str, cuda_include: Path, run: Run, tmp_path: Path, header: str
) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "attn/{header}.h"\n#include "attn/{header}.h"\n')
    includes = ("-I", tree, "-isystem", cuda_include)
    run([host_compiler, *STRICT, *includes, "-fsyntax-only", source])


@pytest.mark.parametrize("header", ["error", "params", "plan", "types"])
def test_what_needs_no_cuda_header_includes_none(
    tree: Path, host_compiler: str, run: Run, tmp_path: Path, header: str
) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "attn/{header}.h"\n')
    run([host_compiler, *STRICT, "-I", tree, "-fsyntax-only", source])


def test_the_documented_call_links_against_the_units_and_names_the_bad_field(
    tree: Path,
    toolchain: Toolchain,
    host_compiler: str,
    cuda_include: Path,
    run: Run,
    tmp_path: Path,
) -> None:
    objects = []
    for unit in sorted((tree / "kernels").glob("*.cu")):
        objects.append(tmp_path / f"{unit.stem}.o")
        gencode = "-gencode=arch=compute_80,code=sm_80"
        run([toolchain.nvcc, "-c", "-std=c++17", "-I", tree, gencode, unit, "-o", objects[-1]])
    includes = ("-I", tree, "-isystem", cuda_include)
    run([host_compiler, *STRICT, *includes, "-c", SOURCE, "-o", tmp_path / "consumer.o"])
    program = tmp_path / "consumer"
    run([toolchain.nvcc, "-o", program, tmp_path / "consumer.o", *objects])
    assert "out is null: give a device address" in run([program]).stdout


def test_a_shared_build_exports_the_documented_call_and_nothing_of_the_inside(
    tree: Path, toolchain: Toolchain, run: Run, tmp_path: Path
) -> None:
    hidden = ("-Xcompiler", "-fPIC,-fvisibility=hidden")
    gencode = "-gencode=arch=compute_80,code=sm_80"
    flags = ("-std=c++17", "-I", tree, gencode, *hidden)
    library = tmp_path / "libunit.so"
    units = sorted((tree / "kernels").glob("*.cu"))
    run([toolchain.nvcc, "-shared", *flags, *units, "-o", library])
    names = run(["nm", "-D", "--defined-only", "--demangle", library]).stdout
    for call in ("invokeAttention", "planAttention", "prepareAttention"):
        assert f"attn::{call}<" in names
    assert "attn::detail::" not in names
