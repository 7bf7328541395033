# SPDX-License-Identifier: Apache-2.0
"""Where cubins are kept: a folder of the user's, or a temporary one when that cannot be written."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

VARIABLE: Final = "ATTN_CACHE_DIR"

_log = logging.getLogger("attn_runtime")


@dataclass(frozen=True, slots=True)
class CacheFolders:
    """`root` is written and read; `read_only` hold cubins too, and are only read."""

    root: Path
    read_only: tuple[Path, ...] = ()


def cache_folders() -> CacheFolders:
    """$ATTN_CACHE_DIR, else $XDG_CACHE_HOME/attn-codegen, else ~/.cache/attn-codegen.

    When it cannot be written (a missing or read-only home), a temporary folder is used, one line
    is logged, and what the first one holds is still read.
    """
    wanted = _wanted()
    if wanted is None:
        return CacheFolders(_temporary("HOME is unset"))
    fault = _fault(wanted)
    if fault is None:
        return CacheFolders(wanted)
    try:
        return CacheFolders(_temporary(f"{wanted} cannot be written ({fault})"), (wanted,))
    except OSError:  # no temporary folder either: what is there can still be read
        return CacheFolders(wanted)


def _wanted() -> Path | None:
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):
            return Path(base, "attn-codegen")
    return None


def _fault(folder: Path) -> str | None:
    """Why nothing can be written there; None when it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(folder, os.W_OK | os.X_OK) else "not writable"


@cache
def _temporary(why: str) -> Path:
    """A folder of this user's alone: what others could write there would run as us."""
    folder = Path(tempfile.gettempdir(), f"attn-codegen-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not private or found.st_uid != os.geteuid():
            folder = Path(tempfile.mkdtemp(prefix="attn-codegen-"))
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="attn-codegen-"))
    _log.warning("%s: compiled kernels are kept in %s; set %s to choose", why, folder, VARIABLE)
    return folder
