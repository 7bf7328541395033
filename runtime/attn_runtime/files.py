# SPDX-License-Identifier: Apache-2.0
"""Files that other processes see whole or not at all."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attn_codegen.errors import OutputError


def require_writable(folder: Path, option: str) -> None:
    """Make the folder that an option names, before work is done for it. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"nothing can be written to {folder} ({error.strerror or error}): choose another "
            f"place with {option}"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """replace_bytes, of a text in UTF-8."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it and a rename. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def write_tree(folder: Path, texts: dict[str, str]) -> None:
    """Write {relative path: text} below a folder. Raises OSError."""
    for path, text in texts.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock of a file; it dies with its holder, however that ends. Yields False, unlocked,
    where the file system cannot lock.

    Between the threads of a process it excludes too: each holder opens the file anew.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(lock)
