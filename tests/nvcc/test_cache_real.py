# SPDX-License-Identifier: Apache-2.0
"""The cubin cache with the real compiler, as a user's first and second process meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_process import NAME, build
from commands import run

pytestmark = pytest.mark.nvcc


def test_a_second_process_takes_the_cubin_of_the_first_even_where_nvcc_is_gone(
    tmp_path: Path,
) -> None:
    cache = str(tmp_path)
    cold, warm = (build(ATTN_CACHE_DIR=cache)[0] for _ in range(2))
    assert (cold["from"], warm["from"]) == ("nvcc", "cache")
    gone, _ = build(ATTN_CACHE_DIR=cache, ATTN_NVCC=str(tmp_path / "no-such-nvcc"))
    assert gone["from"] == "cache"
    assert cold["registers"] == warm["registers"] == gone["registers"] > 0


def test_list_shows_what_the_real_compiler_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path))
    build()
    (entry,) = run("cache", "list").out.splitlines()[1:-1]
    name, target, _, _, seconds, registers, peak, *_ = entry.split()
    assert (name, target) == (NAME, "sm_90")
    assert 0 < float(seconds) < 60
    assert int(registers) > 0
    assert 50 < int(peak) < 500, "MB"
    assert run("cache", "verify").code == 0
    assert run("cache", "why", NAME, "--target", "sm_90").code == 0
