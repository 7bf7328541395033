# SPDX-License-Identifier: Apache-2.0
"""generated/ is what the generator of this checkout emits."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_codegen.manifest import FILE_NAME, owned_files
from commands import Run, run

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "generated"


def test_the_committed_sources_are_what_emit_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert run("emit", "--check") == Run(0, "", ""), "run `make emit` and commit generated/"


def test_the_committed_folder_holds_nothing_else() -> None:
    manifest = GENERATED / FILE_NAME
    owned = owned_files(manifest.read_bytes(), str(manifest))
    there = {
        path.relative_to(GENERATED).as_posix() for path in GENERATED.rglob("*") if path.is_file()
    }
    assert there == {*owned, FILE_NAME}
