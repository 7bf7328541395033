# SPDX-License-Identifier: Apache-2.0
"""Where the cache is: a folder of the user's, or a temporary one."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from attn_runtime import cache_folder
from attn_runtime.cache_folder import cache_folders


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ATTN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cache_folder._temporary.cache_clear()


def test_the_home_folder_is_the_default(tmp_path: Path) -> None:
    folders = cache_folders()
    assert folders.root == tmp_path / "home" / ".cache" / "attn-codegen"
    assert folders.read_only == ()


def test_the_variable_comes_before_xdg_and_xdg_before_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folders().root == tmp_path / "xdg" / "attn-codegen"
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_folders().root == tmp_path / "chosen"


def test_a_relative_xdg_folder_is_passed_over_as_its_specification_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folders().root == tmp_path / "home" / ".cache" / "attn-codegen"


def test_an_unusable_home_gives_a_temporary_folder_and_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        first, second = cache_folders(), cache_folders()
    assert first == second
    assert first.root == tmp_path / "tmp" / f"attn-codegen-{os.geteuid()}"
    assert first.read_only == (tmp_path / "file" / ".cache" / "attn-codegen",)
    (line,) = caplog.messages
    assert "cannot be written" in line
    assert "set ATTN_CACHE_DIR" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom permissions bind: this is root")
def test_a_read_only_home_is_still_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = tmp_path / "home" / ".cache" / "attn-codegen"
    wanted.mkdir(parents=True)
    wanted.chmod(0o500)
    assert cache_folders().read_only == (wanted,)


def test_a_missing_home_gives_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, and no passwd entry
    assert cache_folders().root.parent == tmp_path / "tmp"


def test_the_temporary_folder_is_closed_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folders().root.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_that_others_could_write_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    planted = tmp_path / "tmp" / f"attn-codegen-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert cache_folders().root != planted
