# SPDX-License-Identifier: Apache-2.0
"""Finding nvcc, and knowing which one it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attn_runtime import toolchain
from attn_runtime.errors import ToolchainError
from attn_runtime.toolchain import find_nvcc, locate_nvcc
from fake_nvcc import FakeNvcc, make_fake_nvcc


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler anywhere, and none remembered."""
    for name in ("ATTN_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/empty:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "DEFAULT_NVCC", tmp_path / "usr-local" / "nvcc")
    monkeypatch.setattr(toolchain, "_known", {})


def nvcc_at(folder: Path) -> FakeNvcc:
    return make_fake_nvcc(folder)


def test_the_variable_comes_before_path_and_path_before_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default = tmp_path / "usr-local"
    nvcc_at(default)
    assert locate_nvcc() == default / "nvcc"
    nvcc_at(tmp_path / "cuda-path" / "bin")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda-path"))
    assert locate_nvcc() == tmp_path / "cuda-path" / "bin" / "nvcc"
    nvcc_at(tmp_path / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert locate_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    nvcc_at(tmp_path / "on-path")
    monkeypatch.setenv("PATH", f"{tmp_path / 'on-path'}:/usr/bin:/bin")
    assert locate_nvcc() == tmp_path / "on-path" / "nvcc"
    nvcc_at(tmp_path / "chosen")
    monkeypatch.setenv("ATTN_NVCC", str(tmp_path / "chosen" / "nvcc"))
    assert locate_nvcc() == tmp_path / "chosen" / "nvcc"


def test_a_missing_nvcc_is_an_error_that_says_where_it_was_sought_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/opt/no-such-cuda")
    with pytest.raises(ToolchainError) as error:
        find_nvcc()
    message = str(error.value)
    assert "not on PATH" in message
    assert "/opt/no-such-cuda/bin/nvcc" in message
    assert "set ATTN_NVCC" in message


def test_a_variable_that_names_no_program_is_refused_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc_at(tmp_path / "usr-local")
    monkeypatch.setenv("ATTN_NVCC", str(tmp_path / "typo" / "nvcc"))
    with pytest.raises(ToolchainError, match=r"ATTN_NVCC is .*typo/nvcc, which is no program"):
        find_nvcc()


def test_version_and_identity_come_from_what_nvcc_says(tmp_path: Path) -> None:
    make_fake_nvcc(tmp_path / "usr-local", version="12.9.86")
    found = find_nvcc()
    assert found.version == "12.9.86"
    assert found.identity.startswith("nvcc-12.9.86-")


def test_two_versions_have_two_identities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    identities = set()
    for version in ("12.9.86", "13.0.88"):
        fake = make_fake_nvcc(tmp_path / version, version=version)
        monkeypatch.setenv("ATTN_NVCC", str(fake.path))
        identities.add(find_nvcc().identity)
    assert len(identities) == 2


def test_the_version_is_asked_once_and_then_remembered_across_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = nvcc_at(tmp_path / "usr-local")
    first = find_nvcc(tmp_path / "memo")
    assert find_nvcc(tmp_path / "memo") == first
    monkeypatch.setattr(toolchain, "_known", {})  # what another process starts with
    assert find_nvcc(tmp_path / "memo") == first
    assert fake.runs("version") == 1


@pytest.mark.parametrize("program", ["nvcc", "ptxas"])
def test_a_changed_program_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    fake = nvcc_at(tmp_path / "usr-local")
    changed = fake.path.with_name(program)
    if program != "nvcc":
        changed.write_text("1")
    find_nvcc(tmp_path / "memo")
    os.utime(changed, ns=(1, 1))
    find_nvcc(tmp_path / "memo")
    assert fake.runs("version") == 2


def test_a_memo_that_is_no_json_is_written_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc_at(tmp_path / "usr-local")
    first = find_nvcc(tmp_path / "memo")
    (note,) = (tmp_path / "memo").iterdir()
    note.write_text("{")
    monkeypatch.setattr(toolchain, "_known", {})
    assert find_nvcc(tmp_path / "memo") == first


def test_a_memo_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    nvcc_at(tmp_path / "usr-local")
    (tmp_path / "file").write_text("")
    assert find_nvcc(tmp_path / "file" / "memo").version == "13.0.88"


def test_an_nvcc_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    path = tmp_path / "usr-local" / "nvcc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho broken install\nexit 3\n")
    path.chmod(0o755)
    with pytest.raises(ToolchainError, match="exit code 3: broken install"):
        find_nvcc()


def test_a_program_that_is_no_nvcc_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "usr-local" / "nvcc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho hello\n")
    path.chmod(0o755)
    with pytest.raises(ToolchainError, match="does not say a CUDA version"):
        find_nvcc()
