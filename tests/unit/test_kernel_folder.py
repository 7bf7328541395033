# SPDX-License-Identifier: Apache-2.0
"""Folders of exported kernels: what they hold is loaded without a compiler, and what they lack is
said."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from attn_codegen.config import AttentionConfig, reduction_of
from attn_runtime.attention import Attention
from attn_runtime.cache import CubinCache
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.driver import Context, Device
from attn_runtime.errors import KernelFolderError
from attn_runtime.kernel_folder import KernelFolder, chosen_folder, cubin_of, export
from attn_runtime.kernels import candidates
from commands import run
from fake_nvcc import FakeNvcc

CONFIG = AttentionConfig.parse("prefill_sm80_bf16_d128_paged_causal")
OTHER = replace(CONFIG, head_dim=64, head_dim_v=64)
HOPPER = AttentionConfig.parse("prefill_sm90_bf16_d128_paged_causal")


@pytest.fixture
def folder(nvcc: FakeNvcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export, on a machine that has no compiler and no cache any more."""
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    export([CONFIG, reduction_of(CONFIG)], "sm_90", tmp_path / "kernels", cache)
    monkeypatch.setenv("ATTN_NVCC", str(tmp_path / "no-such-nvcc"))
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path / "another-cache"))
    return tmp_path / "kernels"


def test_build_exports_the_kernels_with_their_reductions(nvcc: FakeNvcc, tmp_path: Path) -> None:
    done = run("build", CONFIG.name, "--target", "sm_90", "--export", str(tmp_path / "kernels"))
    assert done.code == 0, done.err
    assert done.err.endswith("kernels: 2 kernels exported\n")
    held = KernelFolder.open(tmp_path / "kernels").kernels
    assert set(held) == {(CONFIG.name, "sm_90"), (reduction_of(CONFIG).name, "sm_90")}
    assert nvcc.runs("compile") == 2


def test_an_exported_kernel_has_the_bytes_and_facts_of_its_compile(
    nvcc: FakeNvcc, tmp_path: Path
) -> None:
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    export([CONFIG], "sm_90", tmp_path / "kernels", cache)
    built = cache.fetch(CONFIG, "sm_90")
    found = KernelFolder.open(tmp_path / "kernels").fetch(CONFIG, "sm_90")
    assert found.build == replace(built.build, command=(), log="")
    assert (found.is_hit, found.compiler) == (True, built.compiler)


def test_a_folder_serves_kernels_where_there_is_neither_compiler_nor_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cubin_of(CONFIG, "sm_90", folder).build.symbol == CONFIG.name
    monkeypatch.setenv("ATTN_KERNEL_DIR", str(folder))
    assert cubin_of(CONFIG, "sm_90").build.symbol == CONFIG.name


def test_the_argument_comes_before_the_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTN_KERNEL_DIR", str(tmp_path / "elsewhere"))
    chosen = chosen_folder(folder)
    assert chosen is not None and chosen.path == folder
    with pytest.raises(KernelFolderError, match="elsewhere is no folder of exported kernels"):
        chosen_folder(None)


def test_attention_keeps_the_folder_that_it_was_given(folder: Path) -> None:
    attention = Attention(num_heads=8, head_dim=128, kernels=str(folder))
    assert attention.settings.kernels == folder


@pytest.mark.parametrize(
    ("config", "target", "holds"),
    [
        (CONFIG, "sm_80", "it holds this kernel for sm_90 only"),
        (OTHER, "sm_90", f"for sm_90 it holds {CONFIG.name}, {reduction_of(CONFIG).name}"),
        (OTHER, "sm_80", "it holds kernels for sm_90"),
    ],
    ids=["other device", "other kernel", "neither"],
)
def test_what_is_not_in_the_folder_is_named_with_the_command_that_exports_it(
    folder: Path, config: AttentionConfig, target: str, holds: str
) -> None:
    with pytest.raises(KernelFolderError) as error:
        KernelFolder.open(folder).fetch(config, target)
    assert str(error.value) == (
        f"{config.name} for {target} is not in {folder}: {holds}; export it where nvcc is: "
        f"attn-codegen build {config.name} --target {target} --export {folder}"
    )


def test_of_many_kernels_that_a_folder_holds_some_are_named_and_the_others_counted(
    folder: Path,
) -> None:
    held = KernelFolder.open(folder)
    any_kernel = next(iter(held.kernels.values()))
    many = replace(held, kernels={(f"k{n:02}", "sm_90"): any_kernel for n in range(11)})
    with pytest.raises(KernelFolderError, match=r"it holds k00, .*, k07 and 3 more; export it"):
        many.fetch(CONFIG, "sm_90")
    few = replace(held, kernels=dict(list(many.kernels.items())[:8]))
    with pytest.raises(KernelFolderError, match=r"it holds k00, .*, k07; export it"):
        few.fetch(CONFIG, "sm_90")


def test_a_plan_picks_among_the_tiles_that_were_exported(nvcc: FakeNvcc, tmp_path: Path) -> None:
    device = Device(0, "GPU", (9, 0), 132, 227 << 10)
    context = cast(Context, SimpleNamespace(device=device))

    def tiles(path: Path | None) -> list[str]:
        settings = Attention(num_heads=8, head_dim=128, kernels=path).settings
        return [config.name for config in candidates(settings, context)]

    all_tiles = tiles(None)
    assert len(all_tiles) > 1
    path = tmp_path / "kernels"
    run("build", all_tiles[-1], "--target", "sm_90", "--export", str(path))
    assert tiles(path) == all_tiles[-1:]
    run("build", OTHER.name, "--target", "sm_90", "--export", str(tmp_path / "other"))
    assert tiles(tmp_path / "other") == all_tiles, "the error names the one that is loaded"


def test_several_exports_share_a_folder(nvcc: FakeNvcc, tmp_path: Path) -> None:
    path = str(tmp_path / "kernels")
    for name, target in ((CONFIG.name, "sm_86"), (OTHER.name, "sm_86"), (CONFIG.name, "sm_90")):
        assert run("build", name, "--target", target, "--export", path).code == 0
    held = KernelFolder.open(tmp_path / "kernels")
    assert held.has(CONFIG, "sm_86") and held.has(OTHER, "sm_86") and held.has(CONFIG, "sm_90")
    assert not held.has(OTHER, "sm_90")


def test_exports_at_the_same_time_lose_nothing(nvcc: FakeNvcc, tmp_path: Path) -> None:
    cache = CubinCache(CacheFolders(tmp_path / "cache"), find=lambda _: nvcc.toolchain)
    targets = [f"sm_{number}" for number in (80, 86, 87, 89, 90, 100, 103, 120)]
    with ThreadPoolExecutor(len(targets)) as pool:
        list(pool.map(lambda target: export([CONFIG], target, tmp_path / "k", cache), targets))
    held = KernelFolder.open(tmp_path / "k")
    assert [target for target in targets if held.has(CONFIG, target)] == targets


def test_a_kernel_for_one_device_alone_is_exported_for_that_one(
    nvcc: FakeNvcc, tmp_path: Path
) -> None:
    path = str(tmp_path / "kernels")
    assert run("build", HOPPER.name, "--target", "sm_80", "--export", path).code == 0
    assert KernelFolder.open(tmp_path / "kernels").has(HOPPER, "sm_90")


def test_an_export_from_other_sources_is_refused_and_not_launched(folder: Path) -> None:
    manifest = folder / "kernels.json"
    data = json.loads(manifest.read_text())
    for kernel in data["kernels"]:
        kernel |= {"source_key": "0" * 64, "tool_version": "0.0.9"}
    manifest.write_text(json.dumps(data))
    with pytest.raises(
        KernelFolderError, match=r"from other sources \(exported by attn-codegen 0.0.9"
    ):
        KernelFolder.open(folder).fetch(CONFIG, "sm_90")


@pytest.mark.parametrize("content", [b"?", None], ids=["changed", "gone"])
def test_a_damaged_cubin_is_refused(folder: Path, content: bytes | None) -> None:
    cubin = folder / f"{CONFIG.name}.sm_90.cubin"
    if content is None:
        cubin.unlink()
    else:
        cubin.write_bytes(content)
    with pytest.raises(KernelFolderError, match=f"{cubin} is damaged"):
        KernelFolder.open(folder).fetch(CONFIG, "sm_90")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2, "kernels": []}'])
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(KernelFolderError, match="is no folder of exported kernels"):
        KernelFolder.open(tmp_path)
