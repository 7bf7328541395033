# SPDX-License-Identifier: Apache-2.0
"""How many compilers run at a time: what a unit is expected to take, and that the sum fits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from attn_codegen.config import Arch, AttentionConfig
from attn_runtime.build import build
from attn_runtime.cache import CubinCache
from attn_runtime.cache_entries import EntryFacts
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.compiler import Build, Unit
from attn_runtime.packing import DEFAULT_PEAK, Budget, available_bytes, peaks
from attn_runtime.toolchain import Toolchain
from fake_nvcc import make_fake_nvcc

MEMINFO = "MemTotal: 100 kB\nMemAvailable: 64 kB\nSwapTotal: 0 kB\n"


def facts(name: str, peak_bytes: int, created: float = 1.0) -> EntryFacts:
    return EntryFacts(Path(), name, "sm_90", "13", created, 2.0, 100, peak_bytes, 1, {})


def cgroup(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    return folder


def test_jobs_never_hold_more_than_the_budget_together() -> None:
    budget, lock = Budget(10), threading.Lock()
    held, most = 0, 0

    def job(size: int) -> None:
        nonlocal held, most
        with budget.take(size):
            with lock:
                held += size
                most = max(most, held)
            time.sleep(0.005)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, [3, 4, 5, 6, 1, 2, 9, 3] * 3))
    assert 6 < most <= 10


def test_a_job_larger_than_the_budget_runs_alone() -> None:
    budget = Budget(10)
    with budget.take(1000):
        blocked = threading.Thread(target=lambda: budget.take(1).__enter__())
        blocked.start()
        blocked.join(0.05)
        assert blocked.is_alive()
    blocked.join(5)
    assert not blocked.is_alive()


def test_without_any_memory_jobs_run_one_by_one() -> None:
    budget = Budget(0)
    with budget.take(1000):
        blocked = threading.Thread(target=lambda: budget.take(1000).__enter__())
        blocked.start()
        blocked.join(0.05)
        assert blocked.is_alive()
    blocked.join(5)
    assert not blocked.is_alive()


def test_a_failed_job_gives_its_memory_back() -> None:
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.take(10):
        raise ZeroDivisionError
    with budget.take(10):
        pass


def test_a_peak_is_that_of_the_last_compile_of_the_unit_else_the_largest_of_its_family() -> None:
    config = AttentionConfig()
    other = replace(config, head_dim=64, head_dim_v=64)
    hopper = replace(config, arch=Arch.SM90)
    known = [
        facts(config.name, 300, created=1.0),
        facts(config.name, 100, created=2.0),
        facts("prefill_sm80_x", 700),
        facts(other.name, 0),  # made before peaks were measured
    ]
    expected = {config.name: 100, other.name: 700, hopper.name: DEFAULT_PEAK}
    assert peaks([config, other, hopper], known) == expected


def test_available_memory_is_the_systems_or_what_the_container_leaves(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    assert available_bytes(meminfo, tmp_path) == 64 << 10
    assert available_bytes(meminfo, cgroup(tmp_path, "max", 7, 3)) == 64 << 10
    assert available_bytes(meminfo, cgroup(tmp_path, "1000", 700, 100)) == 400
    assert available_bytes(meminfo, cgroup(tmp_path, "1000", 1700, 100)) == 0
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None


def test_a_build_runs_no_more_compilers_than_the_memory_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc, lock = make_fake_nvcc(tmp_path / "nvcc"), threading.Lock()
    running, most = 0, 0

    def compile_slowly(unit: Unit, target: str, toolchain: Toolchain) -> Build:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1
        return Build(unit.name, unit.symbol, target, 0.1, 1, 0, 0, 0, 0, (), "", b"cubin")

    cache = CubinCache(
        CacheFolders(tmp_path), find=lambda _: nvcc.toolchain, compile=compile_slowly
    )
    monkeypatch.setattr("attn_runtime.build.available_bytes", lambda: 3 * DEFAULT_PEAK)
    configs = [AttentionConfig(head_dim=16 * i, head_dim_v=16 * i) for i in range(1, 9)]
    assert all(not report.is_hit for report in build(configs, 8, "sm_90", cache=cache))
    assert most == 2  # 80 % of three peaks hold two
