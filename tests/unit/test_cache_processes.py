# SPDX-License-Identifier: Apache-2.0
"""The cubin cache between real processes: stampedes, kills, and disks that are full."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attn_codegen.config import AttentionConfig, Mask
from attn_runtime.build import build
from attn_runtime.cache import CubinCache
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.compiler import Build, Unit, compile_unit
from attn_runtime.errors import CompileError, ToolchainError
from attn_runtime.source_key import source_key
from attn_runtime.toolchain import Toolchain
from cache_process import finish, start
from fake_nvcc import make_fake_nvcc, make_unit, no_nvcc


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_32_processes_that_start_cold_compile_each_key_once(tmp_path: Path) -> None:
    nvcc, texts = make_fake_nvcc(tmp_path / "nvcc", seconds=0.5), ("one", "three", "eleven")
    processes = [start(tmp_path / "cache", nvcc, texts[i % len(texts)]) for i in range(32)]
    words = [finish(process)[0][0].split()[:2] for process in processes]
    found = [(word, int(size)) for word, size in words]
    for text in texts:
        of_key = sorted(word for word, size in found if size == len(text))
        assert of_key == ["compiled"] + ["hit"] * (len(of_key) - 1)
    assert nvcc.runs("compile") == len(texts)


def test_threads_of_one_process_compile_once(tmp_path: Path) -> None:
    nvcc = make_fake_nvcc(tmp_path / "nvcc", seconds=0.2)
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.fetch(make_unit(), "sm_90"), range(8)))
    assert sum(not cubin.is_hit for cubin in found) == 1
    assert nvcc.runs("compile") == 1


def test_other_keys_do_not_wait_for_a_compile(tmp_path: Path) -> None:
    slow = make_fake_nvcc(tmp_path / "slow", seconds=20)
    quick = make_fake_nvcc(tmp_path / "quick")
    busy = start(tmp_path / "cache", slow, "one text")
    try:
        wait_for(lambda: slow.runs("compile"))
        assert finish(start(tmp_path / "cache", quick, "another text"))[0][0].startswith("compiled")
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        busy.communicate()


def test_the_lock_of_a_killed_process_dies_with_it_and_its_leftovers_go(tmp_path: Path) -> None:
    root, key = tmp_path / "cache", source_key(make_unit("text"), "sm_90")
    slow = make_fake_nvcc(tmp_path / "slow", seconds=60)
    killed = start(root, slow)
    try:
        wait_for(lambda: slow.runs("compile"))
        leftover = root / "tmp" / f"{key}-left"
        leftover.mkdir(parents=True)
        (leftover / "text.cubin").write_bytes(b"half")
        waiting = start(root, make_fake_nvcc(tmp_path / "quick"))
        os.kill(killed.pid, signal.SIGKILL)  # its nvcc lives on, and must not hold the lock
        started = time.monotonic()
        assert finish(waiting)[0][0].startswith("compiled")
        assert time.monotonic() - started < 30
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert not leftover.exists()


def test_a_kill_while_an_entry_is_written_leaves_no_entry(tmp_path: Path) -> None:
    """What is under tmp/ is no entry until its rename, whatever it holds."""
    nvcc, root = make_fake_nvcc(tmp_path / "nvcc"), tmp_path / "cache"
    finish(start(root, nvcc))
    key = source_key(make_unit("text"), "sm_90")
    entry = root / "cubins" / key[:2] / key / nvcc.toolchain.identity
    shutil.move(entry, root / "tmp" / f"{key}-killed")
    assert finish(start(root, nvcc))[0][0].startswith("compiled")
    assert list((root / "tmp").iterdir()) == []


def test_on_a_full_disk_the_result_is_used_and_one_line_warns(tmp_path: Path) -> None:
    nvcc, root = make_fake_nvcc(tmp_path / "nvcc"), tmp_path / "cache"
    lines, err = finish(start(root, nvcc, "t" * 20_000, limit="4096"))
    assert [line.split()[:2] for line in lines] == [["compiled", "20000"]] * 2
    assert all(line.endswith("None") for line in lines)
    assert err.count("WARNING") == 1
    assert "cannot be kept" in err
    assert list((root / "tmp").iterdir()) == []


def test_a_root_that_cannot_be_made_costs_a_warning_and_not_the_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines, err = finish(start(tmp_path / "file" / "cache", make_fake_nvcc(tmp_path / "nvcc")))
    assert lines == ["compiled 4 None"]
    assert err.count("WARNING") == 1


def test_two_that_compile_at_once_where_files_cannot_be_locked_publish_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc, root = make_fake_nvcc(tmp_path / "nvcc"), tmp_path / "cache"
    both = threading.Barrier(2, timeout=30)

    def refuse(*_: object) -> None:
        raise OSError("no locks on this file system")

    def compile_together(unit: Unit, target: str, toolchain: Toolchain) -> Build:
        both.wait()
        return compile_unit(unit, target, toolchain)

    monkeypatch.setattr("attn_runtime.files.fcntl.flock", refuse)
    cache = CubinCache(CacheFolders(root), find=lambda _: nvcc.toolchain, compile=compile_together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cache.fetch(make_unit(), "sm_90"), range(2))
    assert not first.is_hit and not second.is_hit
    assert first.folder == second.folder is not None
    assert cache.fetch(make_unit(), "sm_90").is_hit
    assert list((root / "tmp").iterdir()) == []


def test_build_compiles_side_by_side_and_reports_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = make_fake_nvcc(tmp_path / "nvcc", seconds=0.5)
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    configs = [AttentionConfig(head_dim=d, mask=mask) for d in (64, 128) for mask in Mask]
    done: list[str] = []
    started = time.monotonic()
    reports = build(configs, 4, "sm_90", lambda report: done.append(report.name), cache)
    assert time.monotonic() - started < 4 * 0.5
    assert [report.name for report in reports] == [config.name for config in configs]
    assert sorted(done) == sorted(config.name for config in configs)
    assert not any(report.is_hit for report in reports)
    again = build(configs, 4, "sm_90", cache=cache)
    assert all(report.is_hit for report in again)
    assert [report.seconds for report in again] == [report.seconds for report in reports]


def test_build_reports_a_unit_that_nvcc_refuses_and_goes_on(tmp_path: Path) -> None:
    nvcc = make_fake_nvcc(tmp_path / "nvcc", fails=True)
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    configs = [AttentionConfig(head_dim=d) for d in (64, 128)]
    reports = build(configs, 2, "sm_90", cache=cache)
    assert all(isinstance(report.error, CompileError) for report in reports)
    assert nvcc.runs("compile") == 2


def test_build_stops_where_there_is_no_compiler(tmp_path: Path) -> None:
    cache = CubinCache(CacheFolders(tmp_path), find=no_nvcc)
    with pytest.raises(ToolchainError, match="nvcc was not found"):
        build([AttentionConfig()], 1, "sm_90", cache=cache)
