# SPDX-License-Identifier: Apache-2.0
"""Small generated folders for the tests of the writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attn_codegen.manifest import FILE_NAME, Manifest, sha256


def texts_of(files: Mapping[str, str]) -> dict[str, str]:
    """The files and the manifest that owns them, as a renderer would return them."""
    digests = {path: sha256(text) for path, text in files.items()}
    manifest = Manifest(tool_version="0", namespace="attn", kernels=(), files=digests)
    return dict(sorted({**files, FILE_NAME: manifest.to_text()}.items()))


def preset(letter: str, count: int = 5) -> dict[str, str]:
    """Files of which some are shared with other letters by name, some by name and content."""
    own = {f"kernels/{letter}{i}.cu": f"// {letter}{i}\n" * 50 for i in range(count)}
    shared = {f"attn/h{i}.cuh": f"// header {i} of {letter}\n" * 50 for i in range(count)}
    return texts_of(
        {**own, **shared, "attn/same.h": "// same\n", f"{letter}/deep/er/x.h": "// x\n"}
    )


def on_disk(out: Path) -> dict[str, str]:
    """Every file below the folder, hidden ones too."""
    return {
        path.relative_to(out).as_posix(): path.read_text()
        for path in sorted(out.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def folders_on_disk(out: Path) -> set[str]:
    """Every folder below the folder."""
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_dir()}


def folders_of(texts: Mapping[str, str]) -> set[str]:
    """The folders that the texts need."""
    return {
        parent.as_posix() for path in texts for parent in Path(path).parents if parent != Path()
    }
