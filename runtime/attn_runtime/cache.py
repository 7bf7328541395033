# SPDX-License-Identifier: Apache-2.0
"""The cubin cache: what was compiled once is found by its content, by every process, for ever.

<root>/cubins/<2 of the key>/<source key>/<compiler identity>/   the cubin, the unit, build.json
<root>/locks/<source key>.lock                                   held while a key is compiled
<root>/tmp/                                                      entries before their rename
<root>/toolchains/                                               versions of compilers

The source key covers every byte that is compiled, the flags and the target; a change of any of
them is another key, so nothing is ever stale and nobody has to clear anything.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from attn_codegen.config import AttentionConfig
from attn_runtime.cache_folder import VARIABLE, CacheFolders, cache_folders
from attn_runtime.compiler import Build, Unit, compile_unit, unit_of
from attn_runtime.entry import BUILD_FILE, DamagedEntry, read_entry, typical_seconds, write_entry
from attn_runtime.errors import ToolchainError
from attn_runtime.files import hold
from attn_runtime.source_key import source_key
from attn_runtime.toolchain import Toolchain, find_nvcc

_COLD_SECONDS: Final = 5.0

_log = logging.getLogger("attn_runtime")


@dataclass(frozen=True, slots=True)
class Cubin:
    """A compiled kernel. `is_hit`: it was in the cache. `folder` is None when it could not be
    kept there."""

    build: Build
    is_hit: bool
    folder: Path | None
    compiler: str


class Found(NamedTuple):
    """An entry, or why there is none that fits."""

    cubin: Cubin | None
    why_not: str


class CubinCache:
    """Cubins by content. Safe between threads and processes, which compile each key once."""

    def __init__(
        self,
        folders: CacheFolders,
        *,
        find: Callable[[Path | None], Toolchain] = find_nvcc,
        compile: Callable[[Unit, str, Toolchain], Build] = compile_unit,
    ) -> None:
        self.folders = folders
        self._find = find
        self._compile = compile
        self._has_warned = False

    def fetch(self, source: Unit | AttentionConfig, target: str) -> Cubin:
        """The cubin of a unit for a target such as sm_90, compiled if it must be.

        Without a compiler the newest entry is used. Raises ToolchainError when there is neither,
        CompileError when nvcc refuses the unit, DeviceError when its family cannot serve the
        target.
        """
        unit = unit_of(source) if isinstance(source, AttentionConfig) else source
        key = source_key(unit, target)
        toolchain = self.toolchain()
        found = self.look_up(key, toolchain)
        if found.cubin is not None:
            return found.cubin
        if isinstance(toolchain, ToolchainError):
            raise ToolchainError(self._no_compiler(unit, target, found.why_not, toolchain))
        with hold(self.folders.root / "locks" / f"{key}.lock") as locked:
            if locked:
                _remove_leftovers(self.folders.root / "tmp", key)
            found = self.look_up(key, toolchain)  # another may have compiled while we waited
            if found.cubin is not None:
                return found.cubin
            return self._compile_and_keep(unit, target, key, toolchain, found.why_not)

    def toolchain(self) -> Toolchain | ToolchainError:
        """The compiler at hand, or what keeps it from being used."""
        try:
            return self._find(self.folders.root / "toolchains")
        except ToolchainError as error:
            return error

    def look_up(self, key: str, toolchain: Toolchain | ToolchainError) -> Found:
        """The entry of a source key, whole and by this compiler (by any, without one)."""
        why_not = "it is not in the cache"
        for root in (self.folders.root, *self.folders.read_only):
            parent = _entries(root) / key[:2] / key
            others = [folder.name for folder in _children(parent)]
            if others:
                why_not = f"the cache holds it from {' and '.join(sorted(others))} only"
            for folder in self._candidates(parent, toolchain):
                try:
                    entry = read_entry(folder)
                except DamagedEntry as damage:
                    why_not = f"its entry {folder} is damaged ({damage})"
                    continue
                if entry is not None:
                    return Found(Cubin(entry.build, True, folder, entry.compiler), "")
        return Found(None, why_not)

    def _candidates(self, parent: Path, toolchain: Toolchain | ToolchainError) -> Iterator[Path]:
        """The entry of the compiler at hand; without one, every compiler's, newest first."""
        if isinstance(toolchain, Toolchain):
            yield parent / toolchain.identity
            return
        yield from sorted(_children(parent), key=_age)

    def _no_compiler(self, unit: Unit, target: str, why_not: str, error: ToolchainError) -> str:
        return (
            f"{unit.name} must be compiled for {target}, since {why_not} "
            f"({self.folders.root}), but {error}; or run `attn-codegen build {unit.name}` where "
            f"nvcc is, copy its cache folder here and point {VARIABLE} to it"
        )

    def _compile_and_keep(
        self, unit: Unit, target: str, key: str, toolchain: Toolchain, why: str
    ) -> Cubin:
        expected = typical_seconds(_entries(self.folders.root), _COLD_SECONDS)
        _log.info(
            "compiling %s for %s with nvcc %s, since %s; this takes about %.0f s",
            *(unit.name, target, toolchain.version, why, max(expected, 1.0)),
        )
        build = self._compile(unit, target, toolchain)
        folder = self._keep(unit, build, key, toolchain)
        _log.info(
            "compiled %s in %.1f s: %d registers, %d bytes spilled, kept in %s",
            *(unit.name, build.seconds, build.registers, build.spill_bytes),
            folder or "memory only",
        )
        return Cubin(build, False, folder, toolchain.identity)

    def _keep(self, unit: Unit, build: Build, key: str, toolchain: Toolchain) -> Path | None:
        """Publish by one rename. A cache that cannot be written costs a warning, not the result."""
        parent = _entries(self.folders.root) / key[:2] / key
        staging: Path | None = None
        try:
            temporary = self.folders.root / "tmp"
            temporary.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(dir=temporary, prefix=f"{key}-"))
            staging.chmod(0o755)
            write_entry(staging, unit, build, toolchain)
            parent.mkdir(parents=True, exist_ok=True)
            return _publish(staging, parent / toolchain.identity)
        except OSError as error:
            self._warn(unit, error)
            return None
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)

    def _warn(self, unit: Unit, error: OSError) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "%s was compiled but cannot be kept in %s (%s): the next process compiles it again; "
            "free space there, or set %s to another folder",
            *(unit.name, self.folders.root, error.strerror or error, VARIABLE),
        )


def open_cache() -> CubinCache:
    """The cache of this user; see cache_folders for where it is."""
    return CubinCache(cache_folders())


def _entries(root: Path) -> Path:
    return root / "cubins"


def _children(folder: Path) -> list[Path]:
    try:
        return [Path(item) for item in os.scandir(folder)]
    except OSError:
        return []


def _age(folder: Path) -> float:
    """Sorts the newest build first."""
    with suppress(OSError):
        return -(folder / BUILD_FILE).stat().st_mtime
    return 0.0


def _publish(staging: Path, folder: Path) -> Path:
    """Move the staged entry to its place. Whole entries are never replaced: a damaged one is moved
    out of the way, and one that another process has published meanwhile is as good as ours."""
    for _ in range(2):
        try:
            staging.rename(folder)
            return folder
        except OSError:
            with suppress(DamagedEntry):
                if read_entry(folder) is None:
                    raise
                return folder
            folder.rename(staging.with_name(f"{staging.name}-damaged"))
            shutil.rmtree(staging.with_name(f"{staging.name}-damaged"), ignore_errors=True)
    staging.rename(folder)
    return folder


def _remove_leftovers(temporary: Path, key: str) -> None:
    """Folders of holders of this key's lock that were killed; the lock is ours now."""
    for folder in temporary.glob(f"{key}-*"):
        shutil.rmtree(folder, ignore_errors=True)
