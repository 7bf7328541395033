# SPDX-License-Identifier: Apache-2.0
"""The cubin cache: keys, hits, damage, compilers that differ or are missing."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from attn_runtime import toolchain
from attn_runtime.cache import CubinCache
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.compiler import Unit
from attn_runtime.errors import CompileError, ToolchainError
from attn_runtime.source_key import source_key
from attn_runtime.toolchain import Toolchain
from fake_nvcc import FakeNvcc, make_fake_nvcc, make_unit, no_nvcc


@pytest.fixture
def nvcc(tmp_path: Path) -> FakeNvcc:
    return make_fake_nvcc(tmp_path / "nvcc")


def cache_of(root: Path, compiler: Toolchain, *read_only: Path) -> CubinCache:
    return CubinCache(CacheFolders(root, read_only), find=lambda _: compiler)


def without_compiler(root: Path, *read_only: Path) -> CubinCache:
    return CubinCache(CacheFolders(root, read_only), find=no_nvcc)


def test_a_second_fetch_is_a_hit_with_the_same_bytes(tmp_path: Path, nvcc: FakeNvcc) -> None:
    cache = cache_of(tmp_path / "cache", nvcc.toolchain)
    cold = cache.fetch(make_unit(), "sm_90")
    warm = cache.fetch(make_unit(), "sm_90")
    assert (cold.is_hit, warm.is_hit) == (False, True)
    assert warm.build == cold.build
    assert warm.folder == cold.folder
    assert nvcc.runs("compile") == 1


def test_an_entry_is_a_folder_with_the_cubin_the_unit_and_build_json(
    tmp_path: Path, nvcc: FakeNvcc
) -> None:
    unit = make_unit("the text")
    folder = cache_of(tmp_path, nvcc.toolchain).fetch(unit, "sm_90").folder
    assert folder is not None
    key = source_key(unit, "sm_90")
    assert folder == tmp_path / "cubins" / key[:2] / key / nvcc.toolchain.identity
    assert {path.name for path in folder.iterdir()} == {"unit.cubin", "unit.cu", "build.json"}
    assert (folder / "unit.cu").read_text() == "the text"
    data = json.loads((folder / "build.json").read_text())
    facts = {"symbol", "registers", "spill_stores", "shared_bytes", "seconds", "target"}
    assert facts <= set(data["build"])
    assert set(data["sources"]) == set(unit.texts)


@pytest.mark.parametrize(
    "other",
    [
        make_unit("text 2"),
        make_unit(header="header 2"),
        make_unit(name="other"),
        replace(make_unit(), symbol="other"),
        replace(make_unit(), gencode="-gencode=arch=compute_86,code=sm_86"),
        replace(make_unit(), texts={**make_unit().texts, "attn/b.h": ""}),
    ],
    ids=["unit", "header", "name", "symbol", "flags", "new header"],
)
def test_a_change_of_anything_that_is_compiled_is_another_key(other: Unit) -> None:
    assert source_key(other, "sm_90") != source_key(make_unit(), "sm_90")


def test_another_target_is_another_key() -> None:
    assert source_key(make_unit(), "sm_90") != source_key(make_unit(), "sm_80")


def test_text_that_moves_between_fields_is_another_key() -> None:
    one = replace(make_unit(), texts={"a": "b" * 3, "kernels/unit.cu": ""})
    two = replace(make_unit(), texts={"a": "b" * 2, "kernels/unit.cu": "b"})
    assert source_key(one, "sm_90") != source_key(two, "sm_90")


def test_the_order_of_the_files_does_not_matter() -> None:
    unit = make_unit()
    turned = replace(unit, texts=dict(reversed(list(unit.texts.items()))))
    assert source_key(turned, "sm_90") == source_key(unit, "sm_90")


def test_a_warm_cache_needs_no_compiler_and_runs_none(tmp_path: Path, nvcc: FakeNvcc) -> None:
    cold = cache_of(tmp_path, nvcc.toolchain).fetch(make_unit(), "sm_90")
    warm = without_compiler(tmp_path).fetch(make_unit(), "sm_90")
    assert warm.is_hit
    assert warm.build == cold.build
    assert warm.compiler == nvcc.toolchain.identity
    assert nvcc.runs("compile") == 1


def test_a_hit_with_a_compiler_at_hand_does_not_even_ask_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: FakeNvcc
) -> None:
    monkeypatch.setenv("ATTN_NVCC", str(nvcc.path))
    monkeypatch.setattr(toolchain, "_known", {})
    CubinCache(CacheFolders(tmp_path)).fetch(make_unit(), "sm_90")
    monkeypatch.setattr(toolchain, "_known", {})  # what another process starts with
    assert CubinCache(CacheFolders(tmp_path)).fetch(make_unit(), "sm_90").is_hit
    assert (nvcc.runs("version"), nvcc.runs("compile")) == (1, 1)


def test_two_compilers_keep_their_entries_side_by_side(tmp_path: Path, nvcc: FakeNvcc) -> None:
    other = make_fake_nvcc(tmp_path / "other")
    newer = Toolchain(other.path, "13.1.1", "nvcc-13.1.1-fake")
    for compiler in (nvcc.toolchain, newer) * 2:
        found = cache_of(tmp_path / "cache", compiler).fetch(make_unit(), "sm_90")
        assert found.compiler == compiler.identity
    assert (nvcc.runs("compile"), other.runs("compile")) == (1, 1)


def test_without_a_compiler_the_newest_entry_is_used(tmp_path: Path, nvcc: FakeNvcc) -> None:
    newer = replace(nvcc.toolchain, identity="nvcc-13.1.1-fake")
    for age, compiler in ((1, newer), (2, nvcc.toolchain)):
        folder = cache_of(tmp_path, compiler).fetch(make_unit(), "sm_90").folder
        assert folder is not None
        os.utime(folder / "build.json", (1e9 - age, 1e9 - age))
    assert without_compiler(tmp_path).fetch(make_unit(), "sm_90").compiler == newer.identity


def test_neither_entry_nor_compiler_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError) as error:
        without_compiler(tmp_path).fetch(make_unit(), "sm_90")
    message = str(error.value)
    for part in ("unit must be compiled for sm_90", "not in the cache", str(tmp_path)):
        assert part in message
    for part in ("nvcc was not found", "attn-codegen build unit", "ATTN_CACHE_DIR"):
        assert part in message


def damage_cubin(folder: Path) -> None:
    path = folder / "unit.cubin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def truncate_cubin(folder: Path) -> None:
    (folder / "unit.cubin").write_bytes(b"")


def remove_cubin(folder: Path) -> None:
    (folder / "unit.cubin").unlink()


def remove_build(folder: Path) -> None:
    (folder / "build.json").unlink()


def damage_build(folder: Path) -> None:
    (folder / "build.json").write_text("{")


def empty_build(folder: Path) -> None:
    (folder / "build.json").write_text('{"schema": 1}')


DAMAGES = [damage_cubin, truncate_cubin, remove_cubin, remove_build, damage_build, empty_build]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_found_and_built_anew(
    tmp_path: Path, nvcc: FakeNvcc, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    cache = cache_of(tmp_path, nvcc.toolchain)
    folder = cache.fetch(make_unit("text"), "sm_90").folder
    assert folder is not None and callable(damage)
    damage(folder)
    with caplog.at_level(logging.INFO):
        found = cache.fetch(make_unit("text"), "sm_90")
    assert (found.is_hit, found.build.cubin) == (False, b"text")
    assert "damaged" in caplog.text
    assert cache.fetch(make_unit("text"), "sm_90").is_hit
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_damaged_entry_without_a_compiler_is_never_used(tmp_path: Path, nvcc: FakeNvcc) -> None:
    folder = cache_of(tmp_path, nvcc.toolchain).fetch(make_unit(), "sm_90").folder
    assert folder is not None
    damage_cubin(folder)
    with pytest.raises(ToolchainError, match="damaged"):
        without_compiler(tmp_path).fetch(make_unit(), "sm_90")


def test_a_damaged_entry_gives_way_to_an_older_whole_one(tmp_path: Path, nvcc: FakeNvcc) -> None:
    older = replace(nvcc.toolchain, identity="nvcc-12.9.86-fake")
    cache_of(tmp_path, older).fetch(make_unit(), "sm_90")
    folder = cache_of(tmp_path, nvcc.toolchain).fetch(make_unit(), "sm_90").folder
    assert folder is not None
    damage_cubin(folder)
    assert without_compiler(tmp_path).fetch(make_unit(), "sm_90").compiler == older.identity


def test_a_cold_compile_logs_one_line_before_and_one_after_and_a_hit_none(
    tmp_path: Path, nvcc: FakeNvcc, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path, nvcc.toolchain)
    with caplog.at_level(logging.DEBUG):
        cache.fetch(make_unit(), "sm_90")
    before, after = caplog.messages
    for part in ("compiling unit for sm_90", "nvcc 13.0.88", "not in the cache", "about 5 s"):
        assert part in before
    assert "compiled unit in" in after
    assert "40 registers, 40 bytes spilled" in after
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        cache.fetch(make_unit(), "sm_90")
    assert caplog.messages == []


def test_the_line_before_a_compile_says_when_another_compiler_built_it(
    tmp_path: Path, nvcc: FakeNvcc, caplog: pytest.LogCaptureFixture
) -> None:
    cache_of(tmp_path, nvcc.toolchain).fetch(make_unit(), "sm_90")
    newer = replace(nvcc.toolchain, identity="nvcc-13.1.1-fake")
    with caplog.at_level(logging.INFO):
        cache_of(tmp_path, newer).fetch(make_unit(), "sm_90")
    assert f"the cache holds it from {nvcc.toolchain.identity} only" in caplog.messages[0]


def test_what_nvcc_refuses_is_not_kept_and_is_tried_again(tmp_path: Path, nvcc: FakeNvcc) -> None:
    failing = make_fake_nvcc(tmp_path / "failing", fails=True)
    cache = cache_of(tmp_path / "cache", failing.toolchain)
    for _ in range(2):
        with pytest.raises(CompileError, match="expected a ';'"):
            cache.fetch(make_unit(), "sm_90")
    assert failing.runs("compile") == 2
    mended = cache_of(tmp_path / "cache", nvcc.toolchain)
    assert not mended.fetch(make_unit(), "sm_90").is_hit


def test_a_cache_that_can_only_be_read_still_gives_hits(tmp_path: Path, nvcc: FakeNvcc) -> None:
    cache_of(tmp_path / "shared", nvcc.toolchain).fetch(make_unit(), "sm_90")
    cache = cache_of(tmp_path / "own", nvcc.toolchain, tmp_path / "shared")
    assert cache.fetch(make_unit(), "sm_90").is_hit
    assert not (tmp_path / "own").exists()
