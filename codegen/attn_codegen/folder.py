# SPDX-License-Identifier: Apache-2.0
"""What stands in an output folder, read without following a link out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from attn_codegen.errors import OutputError
from attn_codegen.manifest import FILE_NAME

_SHOWN: Final = 8


class Link:
    """Stands for the content of a symbolic link, which is never read or written through."""


LINK: Final = Link()


def content_of(path: Path) -> bytes | Link | None:
    """The bytes of a plain file, None when there is nothing, LINK for a symbolic link."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            return path.read_bytes()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        return LINK
    raise OutputError(
        f"{path} is not a plain file, and emit would write it: move it away, then run emit again"
    )


def require_folder(out: Path) -> None:
    """Refuse an output path that is something else than a folder."""
    if os.path.lexists(out) and not out.is_dir():
        raise OutputError(f"{out} is not a folder: choose a folder with --out")


def require_plain_folders(out: Path, paths: Iterable[str]) -> None:
    """Refuse to write through a symbolic link, which would leave the folder."""
    for folder in sorted({parent for path in paths for parent in PurePosixPath(path).parents}):
        path = out / folder
        if folder == PurePosixPath() or not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_dir():
            what = "a symbolic link" if path.is_symlink() else "a file"
            raise OutputError(
                f"{path} is {what}, and emit needs a folder there: move it away, then run emit "
                "again"
            )


def require_not_foreign(out: Path, ours: Iterable[str]) -> None:
    """Refuse a folder that holds other things and was never emitted to; dot files do not count."""
    if not out.is_dir():
        return
    known = {PurePosixPath(path).parts[0] for path in ours}
    strangers = sorted(
        entry.name
        for entry in out.iterdir()
        if not entry.name.startswith(".") and entry.name not in known
    )
    if strangers:
        raise OutputError(
            f"{out} was not written by attn-codegen: it has no {FILE_NAME}, but holds "
            f"{listed(strangers)}; nothing was written: choose an empty folder with --out, or use "
            "--force to write beside what is there"
        )


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
