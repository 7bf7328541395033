# SPDX-License-Identifier: Apache-2.0
"""The cubin cache on machines that lack something, met by real processes: room, a home folder, a
compiler, a quick file system."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attn_runtime.cache import CubinCache
from attn_runtime.cache_folder import CacheFolders
from build_process import build
from cache_process import finish, start
from fake_nvcc import FakeNvcc, make_fake_nvcc, make_unit


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"needs mount: {error}")
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def nvcc(tmp_path: Path) -> FakeNvcc:
    return make_fake_nvcc(tmp_path / "nvcc")


def test_on_a_file_system_that_is_full_the_result_is_used_and_one_line_warns(
    tmp_path: Path, nvcc: FakeNvcc
) -> None:
    with mounted(tmp_path / "small", "size=64k") as small:
        lines, err = finish(start(small / "cache", nvcc, "t" * 100_000))
        assert lines == ["compiled 100000 None"]
        assert (err.count("WARNING"), "No space left" in err) == (1, True)
        assert list((small / "cache" / "tmp").iterdir()) == []
        lines, _ = finish(start(small / "cache", nvcc, "short"))  # there is room for this one
        assert lines[0].startswith("compiled 5 /")


def test_a_home_that_cannot_be_written_is_read_and_the_rest_goes_to_a_temporary_folder(
    tmp_path: Path, nvcc: FakeNvcc
) -> None:
    environment: dict[str, Any] = {"ATTN_NVCC": str(nvcc.path), "TMPDIR": str(tmp_path)}
    environment |= {"ATTN_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    with mounted(tmp_path / "home", "size=1m,ro") as home:
        cold, said = build(**environment, HOME=str(home))
        assert "Read-only file system" in said
        assert "set ATTN_CACHE_DIR to choose" in said
        assert cold["from"] == "nvcc"
        assert Path(cold["folder"]).is_relative_to(tmp_path / f"attn-codegen-{os.geteuid()}")
        assert build(**environment, HOME=str(home))[0]["from"] == "cache"
    assert nvcc.runs("compile") == 1


@pytest.mark.parametrize("home", [None, "/dev/null/home", ""], ids=["unset", "no folder", "empty"])
def test_a_missing_home_costs_nothing_but_a_line(
    tmp_path: Path, nvcc: FakeNvcc, home: str | None
) -> None:
    """Without HOME the password file's is used; it belongs to whoever runs this, so XDG names
    one that is missing in the same way."""
    environment: dict[str, Any] = {"ATTN_NVCC": str(nvcc.path), "TMPDIR": str(tmp_path)}
    environment |= {"ATTN_CACHE_DIR": None, "HOME": home, "XDG_CACHE_HOME": "/dev/null/cache"}
    cold, said = build(**environment)
    assert "set ATTN_CACHE_DIR to choose" in said
    assert (cold["from"], build(**environment)[0]["from"]) == ("nvcc", "cache")


def test_two_versions_of_nvcc_keep_an_entry_each_and_neither_compiles_twice(
    tmp_path: Path, nvcc: FakeNvcc
) -> None:
    newer = make_fake_nvcc(tmp_path / "newer", version="13.1.1")
    cache = str(tmp_path / "cache")
    for turn in range(2):
        for compiler in (nvcc, newer):
            found, _ = build(ATTN_NVCC=str(compiler.path), ATTN_CACHE_DIR=cache)
            assert found["from"] == ("cache" if turn else "nvcc")
    identities = {path.name for path in (tmp_path / "cache" / "cubins").glob("*/*/*")}
    assert {name.split("-")[1] for name in identities} == {"13.0.88", "13.1.1"}
    assert (nvcc.runs("compile"), newer.runs("compile")) == (1, 1)


def test_a_warm_cache_needs_no_nvcc(tmp_path: Path, nvcc: FakeNvcc) -> None:
    cache = str(tmp_path / "cache")
    build(ATTN_NVCC=str(nvcc.path), ATTN_CACHE_DIR=cache)
    found, _ = build(ATTN_NVCC=str(tmp_path / "none"), ATTN_CACHE_DIR=cache)
    assert (found["from"], nvcc.runs("compile")) == ("cache", 1)


def test_a_damaged_entry_is_built_anew_by_the_next_process(tmp_path: Path, nvcc: FakeNvcc) -> None:
    environment = {"ATTN_NVCC": str(nvcc.path), "ATTN_CACHE_DIR": str(tmp_path / "cache")}
    cold, _ = build(**environment)
    (cubin,) = Path(cold["folder"]).glob("*.cubin")
    cubin.write_bytes(cubin.read_bytes()[:-1])
    assert [build(**environment)[0]["from"] for _ in range(2)] == ["nvcc", "cache"]


def slow_renames(monkeypatch: pytest.MonkeyPatch, *, lost_answer: bool = False) -> None:
    """Renames as of a network file system: slow, and with `lost_answer` done although they say that
    they failed, as when the answer is lost and the server is asked again."""
    rename = Path.rename

    def slowly(path: Path, target: Path) -> Path:
        time.sleep(0.2)
        renamed = rename(path, target)
        if lost_answer:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return renamed

    monkeypatch.setattr(Path, "rename", slowly)


def test_slow_renames_let_nobody_see_half_an_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: FakeNvcc
) -> None:
    slow_renames(monkeypatch)
    root, done, seen = tmp_path / "cache", threading.Event(), []
    cache = CubinCache(CacheFolders(root), find=lambda _: nvcc.toolchain)

    def watch() -> None:
        while not done.is_set():
            for folder in root.glob("cubins/*/*/*"):
                seen.append({path.name for path in folder.iterdir()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: cache.fetch(make_unit(), "sm_90"), range(8)))
    finally:
        done.set()
        watcher.join()
    assert sum(not cubin.is_hit for cubin in found) == nvcc.runs("compile") == 1
    assert all(files == {"unit.cu", "unit.cubin", "build.json"} for files in seen)


def test_a_rename_whose_answer_was_lost_counts_as_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: FakeNvcc
) -> None:
    slow_renames(monkeypatch, lost_answer=True)
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    cold = cache.fetch(make_unit(), "sm_90")
    assert cold.folder is not None
    assert cache.fetch(make_unit(), "sm_90").is_hit
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
