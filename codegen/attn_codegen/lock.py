# SPDX-License-Identifier: Apache-2.0
"""A lock on an output folder that dies with its holder and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attn_codegen.errors import LockedError, OutputError

_POLL_SECONDS: Final = 0.02


@contextmanager
def hold_lock(folder: Path, wait_seconds: float) -> Iterator[Path]:
    """Make `folder`, hold its lock inside the block, and remove both after; a killed holder frees
    the lock too.

    Raises LockedError, naming the holder, when it is not free within `wait_seconds`.
    """
    lock = _acquire(folder, wait_seconds)
    try:
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield folder
    finally:
        # Unlinked while held: whoever waits on this file finds it gone, and makes the next one.
        with suppress(OSError):
            _lock_file(folder).unlink()
            folder.rmdir()
        os.close(lock)


def _acquire(folder: Path, wait_seconds: float) -> int:
    deadline = time.monotonic() + wait_seconds
    while True:
        lock = _try_acquire(folder)
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            raise LockedError(
                f"{folder.parent} is being written by {_holder(folder)}: wait for it to end, then "
                "run emit again"
            )
        time.sleep(_POLL_SECONDS)


def _try_acquire(folder: Path) -> int | None:
    path = _lock_file(folder)
    try:
        _make_folder(folder)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:  # the holder before us removed the folder just now
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except (
        BlockingIOError,
        FileNotFoundError,
    ):  # held by another, or the file that we hold is gone
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir()
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise OutputError(f"{folder} is not a folder: remove it, then run emit again")


def _lock_file(folder: Path) -> Path:
    return folder / "lock"


def _holder(folder: Path) -> str:
    with suppress(OSError):
        pid = _lock_file(folder).read_text(encoding="ascii", errors="replace").strip()
        if pid.isdigit():
            return f"process {pid}"
    return "another process"
