# SPDX-License-Identifier: Apache-2.0
"""Finds nvcc and says which compiler it is, without running it when nothing has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attn_runtime.errors import ToolchainError
from attn_runtime.files import replace_text

NVCC_VARIABLE: Final = "ATTN_NVCC"
HOME_VARIABLES: Final = ("CUDA_HOME", "CUDA_PATH")
DEFAULT_NVCC: Final = Path("/usr/local/cuda/bin/nvcc")

_INSTALL: Final = f"install the CUDA toolkit, or set {NVCC_VARIABLE} to the path of nvcc"
_DRY_RUN: Final = ("--dryrun", "-cubin", "-x", "cu", os.devnull)
_RUN_SECONDS: Final = 60

Stamp = tuple[tuple[str, int, int], ...]
"""(path, size, time of change in ns) of each program that takes part in a compile."""

_known: dict[Stamp, Toolchain] = {}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A CUDA compiler. `identity` is a folder name that differs between any two compilers."""

    nvcc: Path
    version: str
    identity: str


def find_nvcc(memo: Path | None = None) -> Toolchain:
    """The compiler to use: $ATTN_NVCC, then PATH, $CUDA_HOME, $CUDA_PATH, /usr/local/cuda.

    `memo` is a folder that remembers versions across processes; nvcc runs only when it, cicc or
    ptxas changed in size or time. Raises ToolchainError when there is none, or it does not run.
    """
    nvcc = locate_nvcc()
    note = _note(memo, nvcc)
    found = _recall(note, nvcc)
    if found is None:
        found = _identify(nvcc)
        stamp = _stamp(_programs(nvcc))
        _known[stamp] = found
        _remember(note, stamp, found)
    return found


def locate_nvcc() -> Path:
    """The path of nvcc, not run yet."""
    chosen = os.environ.get(NVCC_VARIABLE)
    if chosen:
        if not _is_program(Path(chosen)):
            raise ToolchainError(
                f"{NVCC_VARIABLE} is {chosen}, which is no program: "
                "set it to the path of nvcc, or unset it"
            )
        return Path(chosen).absolute()
    on_path = shutil.which("nvcc")
    homes = [os.environ[name] for name in HOME_VARIABLES if os.environ.get(name)]
    places = [Path(on_path)] if on_path else []
    places += [*(Path(home, "bin", "nvcc") for home in homes), DEFAULT_NVCC]
    for place in places:
        if _is_program(place):
            return place.absolute()
    where = ", ".join(str(place) for place in places)
    raise ToolchainError(f"nvcc was not found: not on PATH, nor at {where}; {_INSTALL}")


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _identify(nvcc: Path) -> Toolchain:
    """Ask nvcc itself. The whole text counts: builds of one release differ in its last line."""
    text = _output(nvcc, "--version")
    match = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    if match is None:
        raise ToolchainError(
            f"{nvcc} --version does not say a CUDA version, but: {text.strip()!r}; {_INSTALL}"
        )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Toolchain(nvcc, match[1], f"nvcc-{match[1]}-{digest}")


def _output(nvcc: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [str(nvcc), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_RUN_SECONDS,
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{nvcc} cannot be run: {error}; {_INSTALL}") from error
    if done.returncode:
        raise ToolchainError(
            f"{nvcc} {' '.join(arguments)} failed with exit code {done.returncode}: "
            f"{done.stdout.strip() or 'no output'}; {_INSTALL}"
        )
    return done.stdout


def _programs(nvcc: Path) -> list[Path]:
    """nvcc as named, what it links to, and the cicc and ptxas that it runs.

    nvcc may be a script in front of the real one, so it is asked: a dry run prints its folders.
    """
    real = nvcc.resolve()
    here, cicc = real.parent, real.parent.parent / "nvvm" / "bin"
    with suppress(ToolchainError):
        folders = dict(re.findall(r"^#\$ (\w+)=(.+)$", _output(nvcc, *_DRY_RUN), re.M))
        here = Path(folders.get("_HERE_", here))
        cicc = Path(folders.get("CICC_PATH", here.parent / "nvvm" / "bin"))
    found = [nvcc, real, here / "nvcc", here / "ptxas", cicc / "cicc"]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _stamp(programs: Iterable[str | Path]) -> Stamp:
    stats = [(str(path), os.stat(path)) for path in programs]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def _note(memo: Path | None, nvcc: Path) -> Path | None:
    if memo is None:
        return None
    return memo / f"{hashlib.sha256(str(nvcc).encode()).hexdigest()[:16]}.json"


def _recall(note: Path | None, nvcc: Path) -> Toolchain | None:
    """What is known of this nvcc, provided that no program of it has changed."""
    for stamp, toolchain in tuple(_known.items()):
        if toolchain.nvcc == nvcc and _is_current(stamp):
            return toolchain
    if note is None:
        return None
    try:
        data = json.loads(note.read_text(encoding="utf-8"))
        stamp = tuple((str(path), int(size), int(time)) for path, size, time in data["programs"])
        toolchain = Toolchain(Path(data["nvcc"]), str(data["version"]), str(data["identity"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if toolchain.nvcc != nvcc or not stamp or not _is_current(stamp):
        return None
    _known[stamp] = toolchain
    return toolchain


def _is_current(stamp: Stamp) -> bool:
    try:
        return _stamp(path for path, _, _ in stamp) == stamp
    except OSError:
        return False


def _remember(note: Path | None, stamp: Stamp, toolchain: Toolchain) -> None:
    """Best effort: without the note, the next process asks nvcc again."""
    if note is None:
        return
    data = {
        "nvcc": str(toolchain.nvcc),
        "version": toolchain.version,
        "identity": toolchain.identity,
        "programs": stamp,
    }
    with suppress(OSError):
        replace_text(note, json.dumps(data, indent=2) + "\n")
