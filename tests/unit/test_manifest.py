# SPDX-License-Identifier: Apache-2.0
"""What holds of manifest.json: it round-trips, shows an edit, and never claims what it may not."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_codegen import manifest, presets, renderer
from attn_codegen.errors import ManifestError

TEXT = renderer.render(presets.preset("turbomind"))[manifest.FILE_NAME]
DATA: dict[str, Any] = json.loads(TEXT)
FILES = DATA["files"]


def sealed(data: dict[str, Any]) -> bytes:
    """The manifest with a seal that fits, so that only the fault in question is seen."""
    return manifest._sealed(json.dumps(data | {"seal": ""})).encode()


def refusal(text: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.owned_files(text, "generated/manifest.json")
    said = str(caught.value)
    assert said.startswith("generated/manifest.json ")
    assert "\n" not in said
    return said


def test_what_was_written_is_read_back() -> None:
    assert manifest.owned_files(TEXT.encode(), "m") == FILES


def test_it_has_the_documented_keys() -> None:
    assert {"schema", "tool_version", "kernels", "files"} <= DATA.keys()
    assert DATA["schema"] == 1
    keys = {"name", "file", "symbol", "arch", "threads", "shared_bytes", "config", "digest"}
    for kernel in DATA["kernels"]:
        assert keys <= kernel.keys()


@given(st.integers(0, len(TEXT) - 1), st.sampled_from(' \n,0a"'))
def test_an_edit_of_any_character_shows(at: int, character: str) -> None:
    text = TEXT[:at] + character + TEXT[at + 1 :]
    if text != TEXT:
        refusal(text.encode())
    refusal((TEXT[:at] + character + TEXT[at:]).encode())


def test_an_edited_value_shows() -> None:
    for edited in (
        DATA | {"namespace": "x"},
        DATA | {"kernels": DATA["kernels"][1:]},
        DATA | {"files": FILES | {"notes.txt": "0" * 64}},
        {key: value for key, value in DATA.items() if key != "seal"},
    ):
        assert "was edited by hand" in refusal(json.dumps(edited).encode())


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_refused(text: bytes) -> None:
    refusal(text)


@given(st.integers(0, len(TEXT) - 2))
def test_a_truncated_manifest_is_corrupt(length: int) -> None:
    said = refusal(TEXT.encode()[:length])
    assert "is corrupt (it is not JSON" in said
    assert "--force" in said


@pytest.mark.parametrize("schema", [None, "1", 0, -1, True, 1.0])
def test_a_manifest_of_another_tool_is_not_ours(schema: object) -> None:
    assert "is not a manifest of attn-codegen" in refusal(sealed(DATA | {"schema": schema}))


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    said = refusal(sealed({"schema": 2, "tool_version": "9.1.0", "whatever": []}))
    assert "has schema 2, written by attn-codegen 9.1.0" in said
    assert "upgrade attn-codegen" in said


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "//x",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "",
        ".",
        "..",
        "C:x",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    said = refusal(sealed(DATA | {"files": FILES | {path: "0" * 64}}))
    assert "lies outside its folder" in said
    assert "nothing was touched" in said


def test_a_path_with_separators_of_other_systems_is_refused() -> None:
    assert not manifest.is_inside("a\\..\\b")
    assert not manifest.is_inside("a\0b")


@given(st.text(alphabet="ab./\\:~\0", max_size=12))
def test_an_accepted_path_stays_inside(path: str) -> None:
    if manifest.is_inside(path):
        joined = os.path.normpath(os.path.join("/root/folder", path))
        assert joined.startswith("/root/folder/")
        assert os.path.relpath(joined, "/root/folder") == path


@pytest.mark.parametrize("digest", [None, "", "g" * 64, "0" * 63, 7])
def test_a_digest_that_is_none_is_corrupt(digest: object) -> None:
    assert "the sha256 of 'a'" in refusal(sealed(DATA | {"files": {"a": digest}}))


@pytest.mark.parametrize("missing", ["kernels", "files"])
def test_a_manifest_without_its_tables_is_corrupt(missing: str) -> None:
    data = {key: value for key, value in DATA.items() if key != missing}
    assert 'it has no "kernels" list or no "files" table' in refusal(sealed(data))
