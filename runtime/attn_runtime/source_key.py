# SPDX-License-Identifier: Apache-2.0
"""The name of a compile: sha256 over labelled fields, which hold every byte that decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from attn_runtime.compiler import Unit, flags

KEY_SCHEMA: Final = "attn-codegen cubin 1"
FILE: Final = "file "
"""What the labels of source files begin with."""


def key_fields(unit: Unit, target: str) -> dict[str, str]:
    """What a key is made of, by label: schema, unit, symbol, every file that is compiled, flags,
    target."""
    fields = {"schema": KEY_SCHEMA, "unit": unit.file, "symbol": unit.symbol}
    fields |= {f"{FILE}{path}": text for path, text in sorted(unit.texts.items())}
    return fields | {"flags": " ".join(flags(unit, target)), "target": target}


def source_key(unit: Unit, target: str) -> str:
    """The key of a unit for a target such as sm_90."""
    return digest_of(key_fields(unit, target))


def bytes_digest(content: bytes) -> str:
    """sha256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of(fields: Mapping[str, str]) -> str:
    """sha256 over labels and texts with their lengths, so that no text can pass for another."""
    digest = hashlib.sha256()
    for label, text in fields.items():
        content = text.encode()
        digest.update(f"{len(label)}:{label}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
