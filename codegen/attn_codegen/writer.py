# SPDX-License-Identifier: Apache-2.0
"""The only writer of sources: compares texts with a folder, writes atomically, prunes what an
earlier emit owned.

A file is ours when its bytes match the manifest of the last emit, a manifest that an unfinished
emit put beside it, or the text about to be written. Anything else was made or edited by hand, and
only `force` replaces it. Each file is written under `.attn-codegen/` and renamed into place, the
manifest last, so a killed emit leaves every file whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from attn_codegen.errors import ManifestError, OutputError
from attn_codegen.folder import (
    Link,
    content_of,
    listed,
    require_folder,
    require_not_foreign,
    require_plain_folders,
)
from attn_codegen.lock import hold_lock
from attn_codegen.manifest import FILE_NAME, is_inside, owned_files, sha256

WORK_DIR: Final = ".attn-codegen"
WAIT_SECONDS: Final = 5.0
_PENDING_GLOB: Final = "manifest.*.next.json"


@dataclass(frozen=True, slots=True)
class Changes:
    """What an emit did to a folder or, from `check`, would do: sorted relative paths."""

    created: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    """Made or edited by hand where emit writes or removes a file; empty after a write."""
    unfinished: tuple[str, ...] = ()
    """Manifests that an interrupted emit left behind."""

    @property
    def is_current(self) -> bool:
        """True when the folder already is what an emit would make of it."""
        return not (self.created or self.changed or self.removed or self.edited or self.unfinished)


@dataclass(frozen=True, slots=True)
class _Owned:
    """The sha256 values under which each path is ours, from every manifest in the folder."""

    digests: Mapping[str, frozenset[str]]
    unfinished: tuple[str, ...]


def check(texts: Mapping[str, str], out: Path) -> Changes:
    """How the folder differs from the texts. Raises OutputError or ManifestError."""
    with _explained(out, "read"):
        return _compare(texts, out, _read_owned(out, force=False))


def write(
    texts: Mapping[str, str], out: Path, *, force: bool = False, wait_seconds: float = WAIT_SECONDS
) -> Changes:
    """Make the folder hold the texts, beside files that were never ours; returns what was done.

    Raises OutputError or ManifestError before the first write when a file that is not ours stands
    in the way and not `force`; LockedError when another emit keeps the folder for longer than
    `wait_seconds`.
    """
    assert FILE_NAME in texts, "a folder without a manifest cannot be repaired"
    assert all(map(is_inside, texts)), "a path leaves the folder"
    with _explained(out, "write"):
        current = _without_lock(texts, out, force=force)
        if current:
            return current
        out.mkdir(parents=True, exist_ok=True)
        with hold_lock(out / WORK_DIR, wait_seconds) as work:
            try:
                owned = _read_owned(out, force=force)
                changes = _decide(texts, out, owned, force=force)
                if not changes.is_current:
                    _apply(changes, texts, owned, out, work)
            finally:
                _clear(work)
        return changes


def _without_lock(texts: Mapping[str, str], out: Path, *, force: bool) -> Changes | None:
    """Nothing to do, or a refusal, told without touching a folder; None when there is work.

    What another emit has in hand may look like edits: a refusal stands only where none can be
    at work, and is otherwise decided again under the lock.
    """
    try:
        changes = _decide(texts, out, _read_owned(out, force=force), force=force)
    except (OutputError, ManifestError, OSError):
        if (out / WORK_DIR).exists() or (out / FILE_NAME).exists() or _unfinished(out):
            return None
        raise
    return changes if changes.is_current and not (out / WORK_DIR).exists() else None


def _unfinished(out: Path) -> list[str]:
    """Names of the manifests that an emit puts beside the old one while it is at work."""
    return sorted(path.name for path in out.glob(_PENDING_GLOB))


def _decide(texts: Mapping[str, str], out: Path, owned: _Owned, *, force: bool) -> Changes:
    """The changes to make; refuses those that would lose a file that is not ours, unless forced."""
    changes = _compare(texts, out, owned, foreign_is_error=not force)
    if not changes.edited:
        return changes
    if not force:
        was, them = ("was", "it") if len(changes.edited) == 1 else ("were", "them")
        raise OutputError(
            f"{listed([str(out / path) for path in changes.edited])} {was} made or edited by hand, "
            f"and emit would overwrite or remove {them}; nothing was written: move your changes "
            "elsewhere, or run emit with --force to lose them"
        )
    replaced = [path for path in changes.edited if path in texts]
    dropped = [path for path in changes.edited if path not in texts]
    return replace(
        changes,
        changed=tuple(sorted([*changes.changed, *replaced])),
        removed=tuple(sorted([*changes.removed, *dropped])),
        edited=(),
    )


def _compare(
    texts: Mapping[str, str], out: Path, owned: _Owned, *, foreign_is_error: bool = True
) -> Changes:
    paths = sorted({*texts, *owned.digests})
    require_plain_folders(out, paths)
    found: dict[str, list[str]] = {
        "created": [],
        "changed": [],
        "removed": [],
        "left_alone": [],
        "edited": [],
    }
    for path in paths:
        wanted = texts[path].encode() if path in texts else None
        content = content_of(out / path)
        if content == wanted:
            if wanted is not None:
                found["left_alone"].append(path)
        elif content is None:
            found["created"].append(path)
        elif isinstance(content, Link) or sha256(content) not in owned.digests.get(path, ()):
            found["edited"].append(path)
        else:
            found["removed" if wanted is None else "changed"].append(path)
    if foreign_is_error and not owned.digests:
        require_not_foreign(out, found["left_alone"])
    return Changes(
        **{kind: tuple(paths) for kind, paths in found.items()}, unfinished=owned.unfinished
    )


def _read_owned(out: Path, *, force: bool) -> _Owned:
    """What the manifests in the folder own; with force, an unreadable one owns nothing."""
    require_folder(out)
    unfinished = _unfinished(out)
    digests: dict[str, set[str]] = {}
    for name in (FILE_NAME, *unfinished):
        text = content_of(out / name)
        if not isinstance(text, bytes):
            continue
        try:
            owned = owned_files(text, str(out / name))
        except ManifestError:
            if not force:
                raise
            continue
        for path, digest in (*owned.items(), (FILE_NAME, sha256(text))):
            digests.setdefault(path, set()).add(digest)
    return _Owned({path: frozenset(values) for path, values in digests.items()}, tuple(unfinished))


def _apply(
    changes: Changes, texts: Mapping[str, str], owned: _Owned, out: Path, work: Path
) -> None:
    """Write the next manifest beside the old, then the files, then put the manifest in place."""
    _clear(work)
    pending = out / f"manifest.{sha256(texts[FILE_NAME])[:12]}.next.json"
    _put(texts[FILE_NAME], pending, work)
    for path in (*changes.created, *changes.changed):
        if path != FILE_NAME:
            _put(texts[path], out / path, work)
    for path in changes.removed:
        _remove(out / path)
    _remove_empty_folders(out, owned.digests.keys() - texts.keys())
    os.replace(pending, out / FILE_NAME)
    for name in changes.unfinished:
        _remove(out / name)


def _put(text: str, target: Path, work: Path) -> None:
    """Write a file whole: under a temporary name first, then renamed into place."""
    temporary = work / f"{target.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode())
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {_reason(error)}") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {_reason(error)}") from error


def _remove_empty_folders(out: Path, removed: Iterable[str]) -> None:
    """Remove folders that held nothing but files of ours, those of a killed emit too."""
    folders = {parent for path in removed for parent in PurePosixPath(path).parents}
    for folder in sorted(folders - {PurePosixPath()}, reverse=True):
        with suppress(OSError):  # not empty, or gone
            (out / folder).rmdir()


def _clear(work: Path) -> None:
    """Drop temporary files; only ours are there, because the lock is held."""
    for path in work.glob("*.tmp"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def _explained(out: Path, verb: str) -> Iterator[None]:
    """Turn what the system says into one message."""
    try:
        yield
    except OSError as error:
        inside = Path(os.fsdecode(error.filename or out))
        where = out if WORK_DIR in inside.parts else inside
        raise OutputError(f"cannot {verb} {where}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{said}: free some space, then run emit again (every file is whole, old or new)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{said}: make it writable, or choose another folder with --out"
    return f"{said}: choose another folder with --out"
