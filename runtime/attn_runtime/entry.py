# SPDX-License-Identifier: Apache-2.0
"""One entry of the cubin cache on disk: a folder with the cubin, the unit and build.json."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from attn_runtime.compiler import Build, Unit
from attn_runtime.source_key import FILE, bytes_digest, key_fields
from attn_runtime.toolchain import Toolchain

SCHEMA: Final = 1
BUILD_FILE: Final = "build.json"


class DamagedEntry(Exception):
    """An entry that does not hold what its build.json says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A compiled kernel as it was found. `compiler` is the identity of the nvcc that built it."""

    folder: Path
    build: Build
    compiler: str


def write_entry(folder: Path, unit: Unit, build: Build, toolchain: Toolchain) -> None:
    """Fill an empty folder. Raises OSError."""
    cubin, source = f"{unit.name}.cubin", Path(unit.file).name
    (folder / cubin).write_bytes(build.cubin)
    (folder / source).write_text(unit.texts[unit.file], encoding="utf-8", newline="\n")
    facts = {name: value for name, value in asdict(build).items() if name not in ("cubin", "log")}
    key = key_fields(unit, build.target)
    data = {
        "schema": SCHEMA,
        "compiler": {"identity": toolchain.identity, "version": toolchain.version},
        "created": int(time.time()),
        "build": facts,
        "cubin": {"file": cubin, "bytes": len(build.cubin), "sha256": bytes_digest(build.cubin)},
        "key": {label: text for label, text in key.items() if not label.startswith(FILE)},
        "sources": {path: bytes_digest(text.encode()) for path, text in sorted(unit.texts.items())},
        "log": build.log,
    }
    (folder / BUILD_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_entry(folder: Path) -> Entry | None:
    """The entry of a folder, or None where there is none. Raises DamagedEntry that says why."""
    try:
        text = (folder / BUILD_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        if folder.is_dir():
            raise DamagedEntry(f"{BUILD_FILE} is missing") from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedEntry(f"{BUILD_FILE} cannot be read: {error}") from error
    data = _parsed(text)
    try:
        found, facts = data["cubin"], data["build"]
        name, sha256 = str(found["file"]), found["sha256"]
        compiler = str(data["compiler"]["identity"])
        values = {item.name: facts[item.name] for item in fields(Build) if item.name in facts}
        values["command"] = tuple(values["command"])
        cubin = (folder / Path(name).name).read_bytes()
        build = Build(**values, log=str(data["log"]), cubin=cubin)
    except OSError as error:
        raise DamagedEntry(f"its cubin cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise DamagedEntry(f"{BUILD_FILE} lacks {error}") from error
    if bytes_digest(cubin) != sha256:
        raise DamagedEntry(f"{name} does not have the sha256 that {BUILD_FILE} gives")
    return Entry(folder, build, compiler)


def typical_seconds(root: Path, default: float, sample: int = 16) -> float:
    """The mean compile time of some entries below a root; `default` where there are none."""
    found: list[float] = []
    for path in root.glob(f"*/*/*/{BUILD_FILE}"):
        try:
            found.append(float(json.loads(path.read_text(encoding="utf-8"))["build"]["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if len(found) == sample:
            break
    return sum(found) / len(found) if found else default


def _parsed(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DamagedEntry(f"{BUILD_FILE} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise DamagedEntry(f"{BUILD_FILE} is not of schema {SCHEMA}")
    return data
