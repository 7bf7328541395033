# SPDX-License-Identifier: Apache-2.0
"""What a cubin cache holds: listing its entries, checking each, and removing some."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attn_runtime.entry import BUILD_FILE, DamagedEntry, read_entry
from attn_runtime.files import hold

UNREADABLE: Final = "?"


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """An entry by its build.json alone; the cubin is not read. Fields of a build.json that cannot
    be read are "?", 0 or empty."""

    folder: Path
    name: str
    target: str
    compiler: str
    """The version of nvcc."""
    created: float
    """Seconds since the epoch."""
    seconds: float
    registers: int
    peak_bytes: int
    size: int
    """Bytes on disk."""
    key: Mapping[str, str]
    """Labelled parts of the source key: texts, and the digests of source files."""

    @property
    def source_key(self) -> str:
        """The key that the entry was found under."""
        return self.folder.parent.name

    @property
    def identity(self) -> str:
        """The compiler's."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Damage:
    """An entry that must not be used, and why."""

    folder: Path
    why: str


def entry_folders(root: Path) -> Iterator[Path]:
    """The folders of the entries below a cache's root, sorted."""
    yield from sorted((root / "cubins").glob("*/*/*"))


def entries(root: Path) -> list[EntryFacts]:
    """Every entry of a cache, by name, target and age."""
    found = [facts_of(folder) for folder in entry_folders(root)]
    return sorted(found, key=lambda facts: (facts.name, facts.target, -facts.created))


def facts_of(folder: Path) -> EntryFacts:
    """What the build.json of an entry says."""
    data: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        data = json.loads((folder / BUILD_FILE).read_text(encoding="utf-8"))
    data = data if isinstance(data, dict) else {}
    build, compiler = _part(data, "build"), _part(data, "compiler")
    key = {str(label): str(text) for label, text in _part(data, "key").items()}
    key |= {f"file {path}": str(digest) for path, digest in _part(data, "sources").items()}
    return EntryFacts(
        folder=folder,
        name=str(build.get("name", UNREADABLE)),
        target=str(build.get("target", UNREADABLE)),
        compiler=str(compiler.get("version", UNREADABLE)),
        created=_number(data.get("created")),
        seconds=_number(build.get("seconds")),
        registers=int(_number(build.get("registers"))),
        peak_bytes=int(_number(build.get("peak_bytes"))),
        size=_size(folder),
        key=key,
    )


def verify(root: Path) -> tuple[int, list[Damage]]:
    """Read every entry whole and compare its digests: how many are right, and the others."""
    right, damages = 0, []
    for folder in entry_folders(root):
        try:
            entry = read_entry(folder)
        except DamagedEntry as damage:
            damages.append(Damage(folder, str(damage)))
            continue
        right += entry is not None  # None: it was removed just now
    return right, damages


def remove(root: Path, folders: Iterable[Path]) -> int:
    """Remove entries, each under the lock of its key and by one rename first, so that no process
    sees half of one. Returns how many. Raises OSError where the cache cannot be written."""
    temporary, count = root / "tmp", 0
    for folder in folders:
        with hold(root / "locks" / f"{folder.parent.name}.lock"):
            if not folder.exists():
                continue
            temporary.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=temporary, prefix=f"{folder.parent.name}-removed-"))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            count += 1
        for parent in (folder.parent, folder.parent.parent):
            with suppress(OSError):  # other entries are in it
                parent.rmdir()
    return count


def clear(root: Path, older_than: float | None = None) -> tuple[int, int]:
    """Remove the entries that were made more than `older_than` seconds ago, or all of them, and
    what killed processes left under tmp/. Returns how many entries and how many bytes went."""
    latest = time.time() - (older_than or 0.0)
    gone = [facts for facts in entries(root) if older_than is None or facts.created < latest]
    count = remove(root, [facts.folder for facts in gone])
    _remove_leftovers(root)
    return count, sum(facts.size for facts in gone)


def _remove_leftovers(root: Path) -> None:
    """Folders under tmp/ whose key nobody is compiling."""
    for folder in (root / "tmp").glob("*-*"):
        lock = root / "locks" / f"{folder.name.partition('-')[0]}.lock"
        with suppress(OSError), lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = data.get(name)
    return part if isinstance(part, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _size(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        total = sum(item.stat().st_size for item in os.scandir(folder))
    return total
