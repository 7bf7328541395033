# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what a generated folder holds, for CMake, the runtime and the next emit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from attn_codegen.errors import ManifestError

SCHEMA: Final = 1
FILE_NAME: Final = "manifest.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL = re.compile(r'"seal": "[0-9a-f]{64}"')


@dataclass(frozen=True, slots=True)
class TileEntry:
    """The tile of a kernel: query rows, keys of a step, warps, stages of the ring, CTAs per SM, and
    what it costs (attn_codegen.tuning)."""

    cta_q: int
    cta_s: int
    warps: int
    stages: int
    ctas_per_sm: int
    tile_ns: int
    step_ns: int


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One kernel: enough to compile, load and launch it without this package."""

    name: str
    file: str
    """Path of the unit, relative to the folder of the manifest."""
    symbol: str
    """The extern "C" entry."""
    arch: str
    threads: int
    shared_bytes: int
    """Dynamic shared memory of a CTA, in bytes."""
    config: dict[str, str | int | None]
    digest: str
    """sha256 of the unit and of the headers that it includes."""
    tile: TileEntry
    persistent: bool
    """Launched with as many CTAs as fit on the device; each takes tiles until none is left."""
    argument_bytes: int
    argument_align: int
    gencode: str
    native: bool
    """Compiled from PTX of the very device, not of the family that `gencode` names: it uses
    instructions of later devices where it finds itself on one."""
    reduction: str | None
    """Name of the kernel that merges its splits; None where there is nothing to merge."""

    def to_json(self) -> dict[str, Any]:
        """The entry as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one emit writes: its kernels, and the sha256 of each file but the manifest itself."""

    tool_version: str
    namespace: str
    kernels: tuple[KernelEntry, ...]
    files: Mapping[str, str]

    def to_text(self) -> str:
        """The canonical text: sorted, LF, and sealed by a digest, so that an edit shows."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "tool_version": self.tool_version,
            "namespace": self.namespace,
            "kernels": [
                entry.to_json() for entry in sorted(self.kernels, key=lambda entry: entry.name)
            ],
            "files": dict(sorted(self.files.items())),
        }
        return _sealed(json.dumps(data | {"seal": ""}, indent=2) + "\n")


def sha256(text: str | bytes) -> str:
    """Hex sha256 of a text in UTF-8, or of bytes."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def owned_files(text: bytes, where: str) -> dict[str, str]:
    """{path: sha256} of a manifest on disk; `where` is its path in messages.

    Raises ManifestError when the text is not a manifest, is of a newer schema, claims a path
    outside its folder, or was edited by hand.
    """
    data = _parsed(text, where)
    _check_schema(data, where)
    files = data.get("files")
    if not isinstance(files, dict) or not isinstance(data.get("kernels"), list):
        raise _corrupt(where, 'it has no "kernels" list or no "files" table')
    for path, digest in files.items():
        if not is_inside(path):
            raise ManifestError(
                f"{where} claims the file {path!r}, which lies outside its folder; nothing was "
                "touched: restore the manifest from version control, or delete the folder and "
                "emit again"
            )
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise _corrupt(where, f"the sha256 of {path!r} is {digest!r}")
    if not _is_sealed(text.decode()):
        raise ManifestError(
            f"{where} was edited by hand (its seal does not fit its text): restore it from "
            "version control, or run emit with --force to replace it"
        )
    return files


def is_inside(path: str) -> bool:
    """True for a plain relative path that stays below its folder."""
    plain = "\\" not in path and "\0" not in path and ":" not in path
    return plain and all(part not in ("", ".", "..") for part in path.split("/"))


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _corrupt(where, f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _corrupt(where, "it is not a JSON object")
    return data


def _check_schema(data: dict[str, Any], where: str) -> None:
    schema = data.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        told = "it has no schema" if schema is None else f"its schema is {schema!r}"
        raise ManifestError(
            f"{where} is not a manifest of attn-codegen ({told}): choose "
            "another folder with --out, or run emit with --force to replace it"
        )
    if schema > SCHEMA:
        raise ManifestError(
            f"{where} has schema {schema}, written by attn-codegen {data.get('tool_version')}; "
            f"this version reads schema {SCHEMA}: upgrade attn-codegen, or choose another folder "
            "with --out"
        )


def _corrupt(where: str, fault: str) -> ManifestError:
    return ManifestError(
        f"{where} is corrupt ({fault}): restore it from version control, or run emit with --force "
        "to replace it; files that are no longer produced then stay, and are yours to delete"
    )


def _sealed(text: str) -> str:
    """The text with its own sha256 where it has an empty seal."""
    return text.replace('"seal": ""', f'"seal": "{sha256(text)}"')


def _is_sealed(text: str) -> bool:
    unsealed, seals = _SEAL.subn('"seal": ""', text)
    return seals == 1 and text == _sealed(unsealed)
