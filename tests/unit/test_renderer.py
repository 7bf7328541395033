# SPDX-License-Identifier: Apache-2.0
"""What holds of the rendered texts: same configuration, same bytes, and one kernel per unit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from attn_codegen import __version__, params, presets, renderer, space, struct_layout
from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_codegen.errors import ConfigError
from attn_codegen.manifest import FILE_NAME, sha256
from attn_codegen.tiling import tiling

ROOT = Path(__file__).parents[2]
DEFAULT = presets.preset("default")
PAGED = AttentionConfig.of(dtype="bf16", cache="paged")


def units(texts: dict[str, str]) -> dict[str, str]:
    return {path: text for path, text in texts.items() if path.startswith("kernels/")}


def entries(texts: dict[str, str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(texts[FILE_NAME])["kernels"]
    return found


def documented_digest(config: AttentionConfig, texts: dict[str, str]) -> str:
    """sha256 over labelled fields: the headers by path, then the unit with its digest left out."""
    unit = f"kernels/{config.name}.cu"
    hashed = hashlib.sha256()
    headers = [path for path in sorted(texts) if path != unit]
    for path in [*headers, unit]:
        text = texts[path]
        if path == unit:
            text = re.sub(r"(?m)^(// digest +)[0-9a-f]{64}$", r"\1", text)
        hashed.update(f"{len(path)}:{path}:{len(text.encode())}:{text}".encode())
    return hashed.hexdigest()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(space.valid_space()), max_size=8), st.randoms())
def test_order_and_repeats_do_not_change_a_byte(
    configs: list[AttentionConfig], random: object
) -> None:
    shuffled = [*configs, *configs]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert renderer.render(shuffled) == renderer.render(configs)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(space.valid_space()), st.lists(st.sampled_from(DEFAULT), max_size=3))
def test_a_unit_is_the_same_whatever_is_emitted_with_it(
    config: AttentionConfig, others: list[AttentionConfig]
) -> None:
    path = f"kernels/{config.name}.cu"
    alone = renderer.unit_sources(config)
    assert renderer.render([config, *others])[path] == alone[path]


def test_texts_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib; from attn_codegen import presets, renderer;"
        "print(hashlib.sha256(repr(renderer.render(presets.preset('turbomind'))).encode()).hexdigest())"
    )
    seen = set()
    for seed, folder in (("1", "/"), ("2", str(ROOT))):
        env = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=":".join(sys.path))
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_texts_are_sorted_lf_only_and_free_of_dates_and_absolute_paths() -> None:
    texts = renderer.render(DEFAULT)
    assert list(texts) == sorted(texts)
    for path, text in texts.items():
        assert "\r" not in text, path
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path
        assert "\t" not in text, path
        assert str(ROOT) not in text, path
        assert not re.search(r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}\b", text), path


def test_every_unit_is_one_kernel_under_its_own_name_beside_those_of_plain_calls() -> None:
    texts = renderer.render(DEFAULT)
    tiles = {config.name: tiling(config) for config in DEFAULT}
    for path, text in units(texts).items():
        name = path.removeprefix("kernels/").removesuffix(".cu")
        entry = re.findall(
            r'extern "C" __global__[^;{]*?\b(\w+)\s*\(\s*const __grid_constant__', text
        )
        tile = tiles[name]
        others = {"plain": tile.plain, "clusters": tile.cluster_ctas > 1}
        assert entry == [name, *(f"{name}_{word}" for word, exists in others.items() if exists)]
        assert "using namespace" not in text


def test_every_unit_has_a_banner_with_version_configuration_and_digest() -> None:
    texts = renderer.render(DEFAULT)
    for entry in entries(texts):
        banner = texts[str(entry["file"])].split("#include")[0]
        assert f"attn-codegen {__version__}; do not edit" in banner
        assert re.search(rf"(?m)^// configuration +{entry['name']}$", banner)
        assert re.search(rf"(?m)^// digest +{entry['digest']}$", banner)
        assert "SPDX-License-Identifier: Apache-2.0" in banner


def test_every_configuration_of_the_space_renders() -> None:
    configs = space.valid_space()
    texts = renderer.render(configs)
    assert len(units(texts)) == len(configs)
    assert [entry["name"] for entry in entries(texts)] == [config.name for config in configs]


def test_the_manifest_says_of_each_kernel_what_the_tiling_says() -> None:
    for entry in entries(renderer.render(DEFAULT)):
        config = AttentionConfig.parse(str(entry["name"]))
        tile = tiling(config)
        assert entry["config"] == config.axes()
        assert entry["file"] == f"kernels/{config.name}.cu"
        assert entry["symbol"] == config.name
        assert entry["arch"] == config.arch
        number = {Arch.SM80: "80", Arch.SM90: "90a"}[config.arch]
        assert entry["gencode"] == f"-gencode=arch=compute_{number},code=sm_{number}"
        assert entry["threads"] == tile.threads
        assert entry["shared_bytes"] == tile.shared_bytes
        arguments = params.arguments_of(config)
        assert entry["argument_bytes"] == struct_layout.size_of(arguments)
        assert entry["argument_align"] == struct_layout.align_of(arguments)


def test_every_reduction_that_a_kernel_names_is_emitted_with_it() -> None:
    found = entries(renderer.render(DEFAULT))
    names = {entry["name"] for entry in found}
    for entry in found:
        splits = str(entry["name"]).startswith((Mode.PREFILL, Mode.DECODE))
        assert entry["reduction"] in names if splits else entry["reduction"] is None


def test_the_manifest_has_the_sha256_of_every_other_file() -> None:
    texts = renderer.render(DEFAULT)
    files = json.loads(texts[FILE_NAME])["files"]
    assert files == {path: sha256(text) for path, text in texts.items() if path != FILE_NAME}


@pytest.mark.parametrize("config", [PAGED, AttentionConfig.of(mode="reduce")], ids=lambda c: c.name)
def test_a_digest_is_the_sha256_of_everything_that_is_compiled(config: AttentionConfig) -> None:
    sources = renderer.unit_sources(config)
    assert renderer.kernel_entry(config).digest == documented_digest(config, sources)


def test_digests_tell_kernels_apart() -> None:
    digests = [entry["digest"] for entry in entries(renderer.render(DEFAULT))]
    assert len(set(digests)) == len(digests)


def test_a_unit_comes_with_every_header_that_it_includes() -> None:
    for config in (PAGED, AttentionConfig.of(mode="reduce")):
        sources = renderer.unit_sources(config)
        for path, text in sources.items():
            for included in re.findall(r'(?m)^#include "([^"]+)"', text):
                assert included in sources, f"{path} includes {included}"


def test_headers_are_the_template_files_byte_for_byte() -> None:
    folder = ROOT / "templates" / "attn_templates" / "cuda"
    files = [path for path in (folder / "attn").rglob("*") if path.suffix in (".h", ".cuh")]
    texts = renderer.headers()
    assert set(texts) == {path.relative_to(folder).as_posix() for path in files} | {
        "attn/params.h",
        "attn/attn_c.h",
    }
    for path in files:
        assert texts[path.relative_to(folder).as_posix()].encode() == path.read_bytes()


def test_the_licence_goes_along_with_every_folder() -> None:
    for namespace in ("attn", "vendor_x"):
        texts = renderer.render([PAGED], namespace=namespace)
        assert texts["attn/LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_another_namespace_leaves_no_trace_of_the_default_one() -> None:
    texts = renderer.render([PAGED, AttentionConfig.of(mode="reduce")], namespace="vendor_x")
    for path, text in texts.items():
        if path != FILE_NAME:
            assert not re.search(r"\battn::|\bnamespace attn\b|\bATTN_", text), path
            words = set(re.findall(r"(?<!attn/)(?<!src/)\battn_\w+", text))
            assert words <= {"attn_runtime"}, path
    assert any('#include "attn/' in text for text in units(texts).values())
    for entry in entries(texts):
        assert entry["symbol"] == f"vendor_x_{entry['name']}"
        assert f" {entry['symbol']}(" in texts[str(entry["file"])]
        assert "// namespace      vendor_x" in texts[str(entry["file"])]
    assert json.loads(texts[FILE_NAME])["namespace"] == "vendor_x"


def test_kernels_of_two_namespaces_share_no_symbol() -> None:
    def symbols(namespace: str) -> set[object]:
        texts = renderer.render(DEFAULT, namespace=namespace)
        return {entry["symbol"] for entry in entries(texts)}

    assert not symbols("attn") & symbols("vendor_x")
    assert not symbols("vendor_y") & symbols("vendor_x")


@pytest.mark.parametrize(
    "word", ["", "9x", "a b", "class", "_x", "a__b", "x_", "a::b", "std", "né"]
)
def test_a_namespace_that_cannot_be_one_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="use one identifier"):
        renderer.render([PAGED], namespace=word)


def test_a_variable_that_a_template_misspells_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        renderer._environment().from_string("{{ nope }}").render()


def test_an_emit_of_nothing_is_headers_and_an_empty_manifest() -> None:
    texts = renderer.render([])
    assert not units(texts)
    assert entries(texts) == []


def test_templates_keep_tags_on_lines_of_their_own() -> None:
    folder = ROOT / "templates" / "attn_templates" / "jinja"
    lines: Iterable[str] = (
        line.strip() for path in folder.glob("*.j2") for line in path.read_text().splitlines()
    )
    for line in lines:
        if "{%" in line:
            assert line.startswith("{%"), line
            assert line.endswith("%}"), line
            assert line.count("{%") == 1, line
