# SPDX-License-Identifier: Apache-2.0
"""From a unit to a cubin: flags, the report, and errors that lose nothing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from attn_codegen import presets
from attn_codegen.config import AttentionConfig
from attn_runtime.compiler import compile_unit, flags, own_target, parse_log, unit_of
from attn_runtime.errors import CompileError, DeviceError, ToolchainError
from attn_runtime.toolchain import Toolchain
from fake_nvcc import make_fake_nvcc, make_unit

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas info    : Function properties for other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
ptxas info    : Compiling entry function 'prefill' for 'sm_90'
ptxas info    : Function properties for prefill
    48 bytes stack frame, 64 bytes spill stores, 72 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 1406.912 ms
"""


def test_an_sm80_kernel_is_compiled_for_the_device_from_the_instructions_of_sm80() -> None:
    assert flags(make_unit(), "sm_90") == (
        "-cubin",
        "-std=c++17",
        "-gencode=arch=compute_80,code=sm_90",
    )


def test_a_writer_is_compiled_from_the_instructions_of_the_device() -> None:
    writer = unit_of(AttentionConfig.parse("write_sm80_bf16_e4m3_d64_paged"))
    assert flags(writer, "sm_90")[-1] == "-gencode=arch=compute_90,code=sm_90"
    assert flags(writer, "sm_80")[-1] == "-gencode=arch=compute_80,code=sm_80"
    decode = unit_of(AttentionConfig.parse("decode_sm80_bf16_e4m3_d64_paged_causal"))
    assert flags(decode, "sm_90")[-1] == "-gencode=arch=compute_80,code=sm_90"


def test_a_family_with_a_letter_is_compiled_for_its_own_device() -> None:
    unit = replace(make_unit(), gencode="-gencode=arch=compute_90a,code=sm_90a")
    assert flags(unit, "sm_90")[-1] == "-gencode=arch=compute_90a,code=sm_90a"
    with pytest.raises(DeviceError, match="written for sm_90a alone, and the target is sm_100"):
        flags(unit, "sm_100")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sm_75", "needs a GPU of sm_80 or later, and the target is sm_75"),
        ("90", "target '90' is no GPU: use sm_ and a number"),
        ("compute_90", "is no GPU"),
    ],
)
def test_a_target_that_the_family_cannot_serve_is_refused(target: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        flags(make_unit(), target)


def test_a_unit_for_one_device_alone_says_which() -> None:
    assert own_target(make_unit()) is None
    own = replace(make_unit(), gencode="-gencode=arch=compute_90a,code=sm_90a")
    assert own_target(own) == "sm_90"


def test_every_unit_of_the_default_preset_can_be_compiled_for_some_device() -> None:
    for config in presets.preset("default"):
        unit = unit_of(config)
        assert flags(unit, own_target(unit) or "sm_80")[:2] == ("-cubin", "-std=c++17")
        assert unit.file in unit.texts


def test_the_report_of_the_entry_is_read_and_not_that_of_its_neighbours() -> None:
    assert parse_log(PTXAS, "prefill") == {
        "registers": 255,
        "stack_bytes": 48,
        "spill_stores": 64,
        "spill_loads": 72,
        "shared_bytes": 1024,
    }
    assert parse_log(PTXAS, "other")["registers"] == 12
    assert parse_log(PTXAS, "other")["shared_bytes"] == 0


def test_a_report_without_the_entry_counts_nothing() -> None:
    assert set(parse_log("", "prefill").values()) == {0}


def test_a_build_carries_the_cubin_and_what_the_compiler_said(tmp_path: Path) -> None:
    fake = make_fake_nvcc(tmp_path / "nvcc", seconds=0.05)
    build = compile_unit(make_unit("the text"), "sm_90", fake.toolchain)
    assert build.cubin == b"the text"
    assert (build.registers, build.spill_bytes, build.stack_bytes) == (40, 40, 8)
    assert build.shared_bytes == 512
    assert build.seconds >= 0.05
    assert build.command[0] == str(fake.path)
    assert "Used 40 registers" in build.log


def test_the_command_has_no_flags_but_those_of_the_contract_and_the_report(tmp_path: Path) -> None:
    fake = make_fake_nvcc(tmp_path)
    command = compile_unit(make_unit(), "sm_80", fake.toolchain).command
    contract = ("-cubin", "-std=c++17", "-gencode=arch=compute_80,code=sm_80")
    report, paths = ("-Xptxas", "-v"), ("-I", ".", "-o", "unit.cubin", "kernels/unit.cu")
    assert command == (str(fake.path), *contract, *report, *paths)


def test_flags_of_the_environment_do_not_reach_nvcc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They would change the code, and the cache's key would not know."""
    path = tmp_path / "nvcc"
    path.write_text('#!/bin/sh\necho "[$NVCC_APPEND_FLAGS$NVCC_PREPEND_FLAGS]" >unit.cubin\n')
    path.chmod(0o755)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-lineinfo")
    assert compile_unit(make_unit(), "sm_90", Toolchain(path, "13.0", "x")).cubin == b"[]\n"


def test_a_compile_leaves_no_files_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = make_fake_nvcc(tmp_path / "nvcc")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    compile_unit(make_unit(), "sm_90", fake.toolchain)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_error_carries_the_command_the_log_and_the_kept_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fake = make_fake_nvcc(tmp_path / "nvcc", fails=True)
    with pytest.raises(CompileError) as caught:
        compile_unit(make_unit("the text"), "sm_90", fake.toolchain)
    error = caught.value
    assert error.source.read_text() == "the text"
    assert (error.source.parents[1] / "attn" / "a.h").read_text() == "header"
    for part in (str(fake.path), "arch=compute_80,code=sm_90", "expected a ';'", "exit code 2"):
        assert part in str(error)
    assert str(error.source) in str(error)


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("nvcc fatal   : Unsupported gpu architecture 'sm_120'", "install a newer CUDA toolkit"),
        ("#error -- unsupported GNU version! gcc versions later than 14", "NVCC_CCBIN"),
        ("sh: 1: g++: command not found", "needs a host compiler"),
        ("No space left on device", "TMPDIR"),
    ],
)
def test_a_known_failure_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: str, hint: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "nvcc"
    path.write_text(f'#!/bin/sh\necho "{log}"\nexit 1\n')
    path.chmod(0o755)
    with pytest.raises(CompileError, match=hint):
        compile_unit(make_unit(), "sm_90", Toolchain(path, "13.0", "x"))


def test_an_nvcc_that_has_gone_is_a_toolchain_error(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot be run"):
        compile_unit(make_unit(), "sm_90", Toolchain(tmp_path / "nvcc", "13.0", "x"))


def test_a_temporary_folder_that_cannot_be_written_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = make_fake_nvcc(tmp_path / "nvcc")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="set TMPDIR to a folder with room"):
        compile_unit(make_unit(), "sm_90", fake.toolchain)


def test_the_unit_of_a_configuration_holds_every_header_that_it_includes() -> None:
    unit = unit_of(AttentionConfig())
    assert unit.name == unit.symbol == AttentionConfig().name
    assert "attn/params.h" in unit.texts
    assert f'#include "attn/{AttentionConfig().arch}/prefill.cuh"' in unit.texts[unit.file]
