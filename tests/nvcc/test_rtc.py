# SPDX-License-Identifier: Apache-2.0
"""The device side of a unit needs no standard header, so that NVRTC can compile it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_codegen.config import AttentionConfig
from attn_runtime.compiler import Unit, unit_of

pytestmark = pytest.mark.nvcc

Run = Callable[..., subprocess.CompletedProcess[str]]
units = pytest.mark.parametrize(
    "name",
    [
        "prefill_sm80_bf16_d128_paged_causal",
        "decode_sm80_bf16_d128_paged_causal",
        "write_sm80_bf16_int8_d128_paged",
        "reduce_sm80_bf16_d128",
    ],
)


@units
def test_the_device_side_includes_no_standard_header(
    name: str, host_compiler: str, cuda_include: Path, run: Run, tmp_path: Path
) -> None:
    unit = unit_of(AttentionConfig.parse(name))
    write(unit, tmp_path)
    defines = ("-D__CUDACC_RTC__", "-D__CUDACC__", "-D__CUDA_ARCH__=800")
    includes = ("-nostdinc", "-I", ".", "-isystem", cuda_include)
    language = ("-x", "c++", "-std=c++17", "-E")
    run([host_compiler, *language, *defines, *includes, unit.file, "-o", "unit.ii"], tmp_path)


@units
def test_nvrtc_compiles_the_device_side(name: str, cuda_include: Path) -> None:
    nvrtc = pytest.importorskip(
        "cuda.bindings.nvrtc", reason="needs cuda.bindings: it is not installed"
    )
    unit = unit_of(AttentionConfig.parse(name))
    headers = [(path, text) for path, text in unit.texts.items() if path != unit.file]
    try:
        program = made(
            nvrtc.nvrtcCreateProgram(
                unit.texts[unit.file].encode(),
                unit.file.encode(),
                len(headers),
                [text.encode() for _, text in headers],
                [path.encode() for path, _ in headers],
            )
        )
    except RuntimeError as error:
        pytest.skip(f"needs NVRTC: {error}")
    options = [b"-std=c++17", b"-arch=compute_80", f"-I{cuda_include}".encode()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * made(nvrtc.nvrtcGetProgramLogSize(program))
    made(nvrtc.nvrtcGetProgramLog(program, log))
    assert int(status) == 0, log.decode()
    ptx = b" " * made(nvrtc.nvrtcGetPTXSize(program))
    made(nvrtc.nvrtcGetPTX(program, ptx))
    assert f".entry {name}".encode() in ptx


def made(result: tuple[Any, ...]) -> Any:
    """What a call of NVRTC returned beside its status."""
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) > 1 else None


def write(unit: Unit, folder: Path) -> None:
    """The files of a unit."""
    for path, text in unit.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
