# SPDX-License-Identifier: Apache-2.0
"""Whether the next use of a kernel hits the cubin cache, and what has changed when it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attn_codegen.config import AttentionConfig
from attn_runtime.cache import CubinCache
from attn_runtime.cache_entries import EntryFacts, entries
from attn_runtime.compiler import own_target, unit_of
from attn_runtime.errors import ToolchainError
from attn_runtime.source_key import FILE, bytes_digest, digest_of, key_fields

_SHOWN_DIGITS = 12
COMPILER = "compiler"


@dataclass(frozen=True, slots=True)
class Difference:
    """A labelled part of the key: what the entry has, and what is asked for; "" where there is
    none."""

    label: str
    entry: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a fetch would find. `nearest` is the entry that differs least, where nothing fits."""

    name: str
    target: str
    is_hit: bool
    reason: str
    folder: Path | None = None
    nearest: Path | None = None
    differences: tuple[Difference, ...] = ()


def why(config: AttentionConfig, target: str, cache: CubinCache) -> Answer:
    """Look a kernel up as its next use does; compiles nothing.

    Raises DeviceError when its family cannot serve the target.
    """
    unit = unit_of(config)
    target = own_target(unit) or target
    fields = key_fields(unit, target)
    toolchain = cache.toolchain()
    compiler = None if isinstance(toolchain, ToolchainError) else toolchain.identity
    found = cache.look_up(digest_of(fields), toolchain)
    if found.cubin is not None:
        reason = f"it is in the cache, built by {found.cubin.compiler}"
        return Answer(config.name, target, True, reason, found.cubin.folder)
    wanted = _comparable(fields)
    near = nearest(config.name, wanted, compiler, cache)
    return Answer(
        config.name,
        target,
        False,
        found.why_not + (f", and {toolchain}" if isinstance(toolchain, ToolchainError) else ""),
        nearest=near.folder if near else None,
        differences=differences(near, wanted, compiler) if near else (),
    )


def nearest(
    name: str, wanted: Mapping[str, str], compiler: str | None, cache: CubinCache
) -> EntryFacts | None:
    """The entry of a kernel that differs in the fewest parts, the newest of several."""
    roots = (cache.folders.root, *cache.folders.read_only)
    same = [facts for root in roots for facts in entries(root) if facts.name == name]
    return min(
        same,
        key=lambda facts: (len(differences(facts, wanted, compiler)), -facts.created),
        default=None,
    )


def differences(
    facts: EntryFacts, wanted: Mapping[str, str], compiler: str | None
) -> tuple[Difference, ...]:
    """The parts of the key in which an entry is not what is wanted; without a compiler at hand,
    that of the entry will do."""
    labels = dict.fromkeys([*wanted, *facts.key])
    found = [
        Difference(label, facts.key.get(label, ""), wanted.get(label, ""))
        for label in labels
        if facts.key.get(label, "") != wanted.get(label, "")
    ]
    if compiler is not None and facts.identity != compiler:
        found.append(Difference(COMPILER, facts.identity, compiler))
    return tuple(found)


def shown(difference: Difference) -> tuple[str, str]:
    """Both values as a reader wants them: digests shortened, "absent" where there is none."""
    values = (difference.entry, difference.wanted)
    if difference.label.startswith(FILE):
        values = (values[0][:_SHOWN_DIGITS], values[1][:_SHOWN_DIGITS])
    return values[0] or "absent", values[1] or "absent"


def _comparable(fields: Mapping[str, str]) -> dict[str, str]:
    """As an entry keeps them: digests in place of the source files' texts."""
    return {
        label: bytes_digest(text.encode()) if label.startswith(FILE) else text
        for label, text in fields.items()
    }
