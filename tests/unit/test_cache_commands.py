# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen cache`: what it says of a cache of real folders, and what it removes."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from attn_codegen.config import AttentionConfig
from attn_runtime.cache import CubinCache
from attn_runtime.cache_entries import clear, entries, remove, verify
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.cache_why import why
from attn_runtime.compiler import unit_of
from attn_runtime.files import hold
from attn_runtime.toolchain import Toolchain
from commands import run
from fake_nvcc import FakeNvcc, make_unit, no_nvcc

CONFIG = AttentionConfig.parse("prefill_sm80_bf16_d128_paged_causal")


def filled(root: Path, nvcc: FakeNvcc, *names: str) -> list[Path]:
    """The entries of some units."""
    cache = CubinCache(CacheFolders(root), find=lambda _: nvcc.toolchain)
    found = [cache.fetch(make_unit(name, name=name), "sm_90").folder for name in names]
    return [folder for folder in found if folder is not None]


def damage(folder: Path) -> None:
    (cubin,) = folder.glob("*.cubin")
    cubin.write_bytes(b"?")


def age(folder: Path, seconds: float) -> None:
    path = folder / "build.json"
    data = json.loads(path.read_text()) | {"created": int(time.time() - seconds)}
    path.write_text(json.dumps(data))


def test_list_shows_every_entry_with_what_it_took(nvcc: FakeNvcc, tmp_path: Path) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    header, entry, total = run("cache", "list").out.splitlines()
    assert header.split()[:3] == ["name", "target", "nvcc"]
    assert entry.split()[:3] == [CONFIG.name, "sm_90", "13.0.88"]
    assert total.startswith(f"{tmp_path / 'cache'}: 1 entry, ")
    (told,) = json.loads(run("cache", "list", "--json").out)
    assert (told["name"], told["target"]) == (CONFIG.name, "sm_90")
    assert told["key"]["flags"] == "-cubin -std=c++17 -gencode=arch=compute_80,code=sm_90"


def test_an_entry_that_cannot_be_read_is_still_listed(nvcc: FakeNvcc, tmp_path: Path) -> None:
    (folder,) = filled(tmp_path, nvcc, "one")
    (folder / "build.json").write_text("[1")
    (facts,) = entries(tmp_path)
    assert (facts.name, facts.folder, facts.seconds) == ("?", folder, 0)


def test_why_says_hit_when_the_next_use_compiles_nothing(nvcc: FakeNvcc) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    done = run("cache", "why", CONFIG.name, "--target", "sm_90")
    assert (done.code, done.out.split(":")[0]) == (0, "hit")
    run("build", CONFIG.name, "--target", "sm_90")
    assert nvcc.runs("compile") == 1


def test_why_says_miss_of_an_empty_cache(nvcc: FakeNvcc) -> None:
    done = run("cache", "why", CONFIG.name, "--target", "sm_90", "--json")
    told = json.loads(done.out)
    assert (done.code, told["is_hit"], told["nearest"]) == (1, False, None)
    assert "not in the cache" in told["reason"]
    assert nvcc.runs("compile") == 0


def test_why_names_the_header_that_changed(nvcc: FakeNvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    unit = unit_of(CONFIG)
    path = "attn/key_range.cuh"
    object.__setattr__(unit, "texts", {**unit.texts, path: unit.texts[path] + "// more\n"})
    monkeypatch.setattr("attn_runtime.cache_why.unit_of", lambda _: unit)
    try:
        done = run("cache", "why", CONFIG.name, "--target", "sm_90")
    finally:
        unit_of.cache_clear()  # the changed unit is the one that it keeps
    assert done.code == 1
    (line,) = done.out.splitlines()[2:]
    assert re.fullmatch(
        rf"  file {re.escape(path)}: [0-9a-f]{{12}} there, [0-9a-f]{{12}} here", line
    )


def test_why_compares_with_the_entry_that_differs_least(nvcc: FakeNvcc) -> None:
    run("build", CONFIG.name, "--target", "sm_80")
    run("build", CONFIG.name, "--target", "sm_90")
    told = json.loads(run("cache", "why", CONFIG.name, "--target", "sm_86", "--json").out)
    assert [part["label"] for part in told["differences"]] == ["flags", "target"]
    other = json.loads(run("cache", "why", "prefill_sm80_bf16_d64_paged_causal", "--json").out)
    assert other["nearest"] is None


def test_why_names_the_compiler_when_only_that_changed(nvcc: FakeNvcc, tmp_path: Path) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    newer = Toolchain(nvcc.path, "13.1.1", "nvcc-13.1.1-fake")
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: newer)
    answer = why(CONFIG, "sm_90", cache)
    assert [part.label for part in answer.differences] == ["compiler"]
    assert answer.differences[0].wanted == "nvcc-13.1.1-fake"


def test_why_is_a_hit_without_any_compiler(nvcc: FakeNvcc, tmp_path: Path) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=no_nvcc)
    assert why(CONFIG, "sm_90", cache).is_hit
    missing = why(CONFIG, "sm_80", cache)
    assert not missing.is_hit
    assert "nvcc was not found" in missing.reason


def test_why_tells_of_damage(nvcc: FakeNvcc) -> None:
    run("build", CONFIG.name, "--target", "sm_90")
    (told,) = json.loads(run("cache", "list", "--json").out)
    damage(Path(told["folder"]))
    done = run("cache", "why", CONFIG.name, "--target", "sm_90")
    assert (done.code, "is damaged" in done.out) == (1, True)


def test_verify_finds_exactly_the_damaged_entries_and_removes_them_when_told(
    nvcc: FakeNvcc, tmp_path: Path
) -> None:
    one, two, three = filled(tmp_path / "cache", nvcc, "one", "two", "three")
    assert run("cache", "verify").code == 0
    damage(one)
    (three / "build.json").unlink()
    done = run("cache", "verify")
    assert done.code == 1
    assert {line.split()[1].rstrip(":") for line in done.out.splitlines()[:-1]} == {
        str(one),
        str(three),
    }
    assert done.out.splitlines()[-1].endswith("remove them with attn-codegen cache verify --remove")
    assert run("cache", "verify", "--remove").code == 0
    assert [facts.folder for facts in entries(tmp_path / "cache")] == [two]
    assert verify(tmp_path / "cache") == (1, [])


def test_clear_removes_what_is_older_and_leaves_the_rest(nvcc: FakeNvcc, tmp_path: Path) -> None:
    old, young = filled(tmp_path / "cache", nvcc, "old", "young")
    age(old, 31 * 86400)
    age(young, 29 * 86400)
    done = run("cache", "clear", "--older-than", "30d")
    assert (done.code, "1 entry removed" in done.out) == (0, True)
    assert (old.exists(), young.exists()) == (False, True)
    told = json.loads(run("cache", "clear", "--json").out)
    assert (told["removed"], told["bytes"] > 0) == (1, True)
    assert not list((tmp_path / "cache" / "cubins").iterdir())


@pytest.mark.parametrize("word", ["30", "d", "-1d", "3 weeks"])
def test_an_age_without_a_number_and_a_unit_is_refused(word: str) -> None:
    done = run("cache", "clear", "--older-than", word)
    assert done.code == 2
    assert "use a number and d, h, m or s, such as 30d" in done.err


def test_clear_takes_leftovers_of_killed_compiles_and_not_those_of_running_ones(
    tmp_path: Path,
) -> None:
    dead, alive = tmp_path / "tmp" / "dead-1", tmp_path / "tmp" / "alive-1"
    (tmp_path / "locks").mkdir()
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    with hold(tmp_path / "locks" / "alive.lock"):
        clear(tmp_path)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_removing_an_entry_twice_counts_once(nvcc: FakeNvcc, tmp_path: Path) -> None:
    folders = filled(tmp_path, nvcc, "one")
    assert (remove(tmp_path, folders), remove(tmp_path, folders)) == (1, 0)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("command", ["list", "why", "verify", "clear"])
def test_every_command_of_the_cache_shows_an_example_in_its_help(command: str) -> None:
    done = run("cache", command, "--help")
    assert f"attn-codegen cache {command}" in done.out.split("Example")[1]


def test_a_cache_that_is_not_there_yet_is_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path / "new"))
    assert json.loads(run("cache", "list", "--json").out) == []
    assert run("cache", "verify").code == run("cache", "clear").code == 0
    assert os.listdir(tmp_path / "new") == []
