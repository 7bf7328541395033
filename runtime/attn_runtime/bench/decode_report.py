# SPDX-License-Identifier: Apache-2.0
"""Decode figures as a table, as markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from attn_codegen.prose import counted
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.report import OURS, SAME, label_of, unique
from attn_runtime.bench.shapes import geometric_mean

SCHEMA: Final = "attn-codegen bench decode 1"


@dataclass(frozen=True, slots=True)
class DecodeFigures:
    """One cell: microseconds of a launch by contender, cold and in a stream of launches. Of codes,
    the cache that is not quantised is a contender, too."""

    name: str
    kv_bytes: int
    cold: dict[str, float]
    stream: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    kv_dtype: str = SAME

    @property
    def label(self) -> str:
        """Of its line in the table."""
        return label_of(self.name, self.kv_dtype)

    def share(self, bandwidth: float, contender: str = OURS) -> float:
        """Of the bandwidth, in a stream of launches."""
        return self.kv_bytes / (self.stream[contender] * 1e-6) / bandwidth


@dataclass(frozen=True, slots=True)
class DecodeResults:
    """A run. Bandwidths in bytes per second; floors in microseconds, of an empty kernel."""

    title: str
    peers: tuple[str, ...]
    facts: dict[str, str]
    clocks: dict[str, str]
    sequential: float
    pieces: float
    floors: dict[str, float]
    cells: tuple[DecodeFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DecodeResults:
        """Raises BenchError for data of another kind."""
        if data.get("schema") != SCHEMA:
            raise BenchError(f"the file holds no decode results: expected {SCHEMA!r}")
        fields = {name: value for name, value in data.items() if name != "schema"}
        cells = tuple(DecodeFigures(**cell) for cell in fields.pop("cells"))
        return cls(**{**fields, "peers": tuple(fields["peers"]), "cells": cells})


def heading(peers: Sequence[str]) -> list[str]:
    """Of the columns."""
    names = [f"x {peer} {when}" for peer in peers for when in ("cold", "stream")]
    return ["batch x context", "MB", "cold us", "stream us", "TB/s", "share", *names]


def row(cell: DecodeFigures, pieces: float, peers: Sequence[str]) -> list[str]:
    """Of one cell; the share is that of reading 32 KB pieces in random order."""
    cold, stream = cell.cold[OURS], cell.stream[OURS]
    words = [cell.label, f"{cell.kv_bytes / 1e6:.0f}", f"{cold:.1f}", f"{stream:.1f}"]
    words += [f"{cell.kv_bytes / stream / 1e6:.2f}", f"{100 * cell.share(pieces):.0f} %"]
    for peer in peers:
        for own, times in ((cold, cell.cold), (stream, cell.stream)):
            words.append(f"{times[peer] / own:.2f}" if peer in times else "-")
    return words


def body(results: DecodeResults, *, markdown: bool = False) -> list[str]:
    """What stands below the header of a report."""
    columns = heading(results.peers)
    rows = [row(cell, results.pieces, results.peers) for cell in results.cells]
    if markdown:
        table = [f"| {' | '.join(words)} |" for words in (columns, ["---"] * len(columns), *rows)]
    else:
        table = [aligned(words, columns, rows) for words in (columns, *rows)]
    lines = [f"clocks {when}: {state}" for when, state in results.clocks.items()]
    lines += [ceilings(results.sequential, results.pieces, results.floors), "", *table, ""]
    return [*lines, *closing(results.cells, results.peers)]


def aligned(words: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A line of the table: the name to the left, figures to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    first, *others = (
        word.rjust(width) if index else word.ljust(width)
        for index, (word, width) in enumerate(zip(words, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def ceilings(sequential: float, pieces: float, floors: dict[str, float]) -> str:
    """What bounds every cell."""
    empty = ", ".join(f"{when} {us:.1f} us" for when, us in floors.items())
    return (
        f"reading: {sequential / 1e12:.2f} TB/s in order, {pieces / 1e12:.2f} TB/s in 32 KB pieces "
        f"in random order (share is of that); an empty kernel: {empty}"
    )


def closing(cells: Sequence[DecodeFigures], peers: Sequence[str]) -> list[str]:
    """The mean and the lowest of the ratios to each peer, and why others are missing."""
    lines = []
    for peer in peers:
        for kind in unique(cell.kv_dtype for cell in cells if peer in cell.stream):
            own = [cell for cell in cells if cell.kv_dtype == kind and peer in cell.stream]
            name = peer if kind == SAME else f"{peer}, {kind}"
            lines += [_summary(name, peer, when, own) for when in ("cold", "stream")]
    missing = [f"{peer}: {why}" for cell in cells for peer, why in cell.missing.items()]
    return [*lines, *unique(missing)]


def _summary(name: str, peer: str, when: str, cells: Sequence[DecodeFigures]) -> str:
    times = [(getattr(cell, when), cell.name) for cell in cells]
    ratios = [(one[peer] / one[OURS], cell) for one, cell in times]
    mean, (lowest, cell) = geometric_mean([ratio for ratio, _ in ratios]), min(ratios)
    return (
        f"x {name}, {when}: geometric mean {mean:.2f} of {counted(len(ratios), 'cell')}, "
        f"lowest {lowest:.2f} ({cell})"
    )
