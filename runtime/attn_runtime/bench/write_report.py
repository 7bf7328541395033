# SPDX-License-Identifier: Apache-2.0
"""Figures of cache writers as a table, as markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from attn_runtime.bench.decode_report import aligned
from attn_runtime.bench.errors import BenchError

SCHEMA: Final = "attn-codegen bench write 1"
HEADING: Final = ("head_dim, cache", "MB", "us", "TB/s", "of a copy")


@dataclass(frozen=True, slots=True)
class WriteFigures:
    """One kind of row: the bytes that a launch reads and writes, its microseconds, and bytes per
    second of copying in the same rounds, read and written."""

    name: str
    moved_bytes: int
    microseconds: float
    copy: float

    @property
    def rate(self) -> float:
        """Bytes per second, read and written."""
        return self.moved_bytes / (self.microseconds * 1e-6)

    @property
    def share(self) -> float:
        """Of the rate of a copy."""
        return self.rate / self.copy


@dataclass(frozen=True, slots=True)
class WriteResults:
    """A run: what was asked, on what, and every cell."""

    title: str
    facts: dict[str, str]
    clocks: dict[str, str]
    cells: tuple[WriteFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WriteResults:
        """Raises BenchError for data of another kind."""
        if data.get("schema") != SCHEMA:
            raise BenchError(f"the file holds no results of a writer: expected {SCHEMA!r}")
        fields = {name: value for name, value in data.items() if name != "schema"}
        return cls(**{**fields, "cells": tuple(WriteFigures(**cell) for cell in fields["cells"])})


def row(cell: WriteFigures) -> tuple[str, ...]:
    """Of one cell."""
    return (
        cell.name,
        f"{cell.moved_bytes / 1e6:.0f}",
        f"{cell.microseconds:.1f}",
        f"{cell.rate / 1e12:.2f}",
        f"{100 * cell.share:.0f} %",
    )


def line(words: Sequence[str]) -> str:
    """Of a table whose figures are not known yet: as wide as any of them."""
    return aligned(words, HEADING, [("256 int8", "99999", "99999.9", "9.99", "100 %")])


def body(results: WriteResults, *, markdown: bool = False) -> list[str]:
    """What stands below the header of a report."""
    rows = [row(cell) for cell in results.cells]
    if markdown:
        table = [f"| {' | '.join(words)} |" for words in (HEADING, ("---",) * len(HEADING), *rows)]
    else:
        table = [line(words) for words in (HEADING, *rows)]
    clocks = [f"clocks {when}: {state}" for when, state in results.clocks.items()]
    return [*clocks, *closing(results.cells), "", *table]


def closing(cells: Sequence[WriteFigures]) -> list[str]:
    """What bounds every cell."""
    rates = [cell.copy / 1e12 for cell in cells]
    return [f"a copy on the device: {min(rates):.2f} to {max(rates):.2f} TB/s, read and written"]
