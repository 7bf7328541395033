# SPDX-License-Identifier: Apache-2.0
"""The only reader of the package of templates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from attn_codegen.errors import RenderError

Suffixes = str | tuple[str, ...]


@cache
def verbatim(folder: str, suffixes: Suffixes) -> tuple[tuple[str, str], ...]:
    """(path, text) of the CUDA C++ files of a folder that are emitted as they are."""
    root = _package().joinpath("cuda", folder)
    found = tuple(_walk(root, folder, suffixes))
    if not found:
        raise RenderError(f"no files in {root}: reinstall attn-codegen, its templates are missing")
    return found


def jinja_source(name: str) -> str | None:
    """The text of a Jinja template, or None where there is no such template."""
    item = _package().joinpath("jinja", name)
    return item.read_text(encoding="utf-8") if item.is_file() else None


def cmake_folder() -> Path:
    """The folder of attn_codegen-config.cmake. Raises RenderError where it is not on disk."""
    folder = Path(str(_package().joinpath("cmake")))
    if not folder.is_dir():
        raise RenderError(f"{folder} is not a folder: install attn-codegen unpacked, as pip does")
    return folder


def _walk(folder: Traversable, path: str, suffixes: Suffixes) -> Iterator[tuple[str, str]]:
    if not folder.is_dir():
        return
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{path}/{item.name}", suffixes)
        elif item.name.endswith(suffixes) and not item.name.startswith("."):
            yield f"{path}/{item.name}", item.read_text(encoding="utf-8")


def _package() -> Traversable:
    try:
        return files("attn_templates")
    except ModuleNotFoundError:
        raise RenderError(
            "the package attn_templates is missing: install attn-codegen, or add templates/ of "
            "the checkout to PYTHONPATH"
        ) from None
