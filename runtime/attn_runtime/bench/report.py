# SPDX-License-Identifier: Apache-2.0
"""Figures as tables, as markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_codegen.prose import counted
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.shapes import geometric_mean

OURS = "ours"
SAME = "same"
"""Ours on a cache that is not quantised; the value of the axis kv_dtype."""
SCHEMA = "attn-codegen bench prefill 1"
_WHAT_WIDTH = len("x flashinfer")
_FIGURE_WIDTH = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One shape on one kind of cache: TFLOP/s and milliseconds of each contender, and why others
    are missing."""

    row: str
    column: str
    tflops: dict[str, float]
    milliseconds: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    kv_dtype: str = SAME

    @property
    def label(self) -> str:
        """Of its line in the table."""
        return label_of(self.row, self.kv_dtype)

    def ratio(self, peer: str) -> float | None:
        """How much faster ours does the work; None where the peer did not run."""
        if peer not in self.tflops or OURS not in self.tflops:
            return None
        return self.tflops[OURS] / self.tflops[peer]

    def names(self, peer: str) -> bool:
        """The peer ran, or it is known why not."""
        return peer in self.tflops or peer in self.missing


@dataclass(frozen=True, slots=True)
class Results:
    """A run: what was asked, on what, and every cell."""

    title: str
    peers: tuple[str, ...]
    facts: dict[str, str]
    clocks: dict[str, str]
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Results:
        """Raises BenchError for data of another kind."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise BenchError(f"the file holds no results of this version: expected {SCHEMA!r}")
        return cls(
            title=data["title"],
            peers=tuple(data["peers"]),
            facts=data["facts"],
            clocks=data["clocks"],
            cells=tuple(Cell(**cell) for cell in data["cells"]),
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: a label for the row, one for what is shown, and a figure per column."""

    row: str
    what: str
    figures: tuple[str, ...]


def label_of(row: str, kv_dtype: str) -> str:
    """Of the line of a row on a kind of cache."""
    return row if kv_dtype == SAME else f"{row} {kv_dtype}"


def unique(items: Iterable[str]) -> list[str]:
    """Each item once, in the order of their first appearance."""
    return list(dict.fromkeys(items))


def lines_of(cells: Sequence[Cell], peers: Sequence[str], columns: Sequence[str]) -> list[Line]:
    """Ours in TFLOP/s, then how many times each peer that is, where the peer has to do with it."""
    lines = []
    for row in unique(cell.label for cell in cells):
        known = {cell.column: cell for cell in cells if cell.label == row}
        own = [known.get(column) for column in columns]
        rates = tuple("-" if cell is None else f"{cell.tflops[OURS]:.0f}" for cell in own)
        lines.append(Line(row, "TFLOP/s", rates))
        for peer in peers:
            if any(cell.names(peer) for cell in known.values()):
                lines.append(Line("", f"x {peer}", tuple(_times(cell, peer) for cell in own)))
    return lines


def _times(cell: Cell | None, peer: str) -> str:
    ratio = None if cell is None else cell.ratio(peer)
    return "-" if ratio is None else f"{ratio:.2f}"


def text_table(columns: Sequence[str], lines: Sequence[Line], row_width: int = 0) -> list[str]:
    """Figures to the right, labels to the left, under a heading. Tables with the same columns and
    row_width stand under one another."""
    first = max([row_width, *(len(line.row) for line in lines)])
    second = max([_WHAT_WIDTH, *(len(line.what) for line in lines)])
    widths = [
        max([_FIGURE_WIDTH, len(column), *(len(line.figures[i]) for line in lines)])
        for i, column in enumerate(columns)
    ]

    def text(row: str, what: str, figures: Sequence[str]) -> str:
        cells = [word.rjust(width) for word, width in zip(figures, widths, strict=True)]
        return "  ".join([row.ljust(first), what.ljust(second), *cells]).rstrip()

    body = [text(line.row, line.what, line.figures) for line in lines]
    return [text("", "", columns), *body]


def markdown_table(columns: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """The same for a README."""
    head = ["", "", *columns]
    rows = [[line.row, line.what, *line.figures] for line in lines]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def summaries(cells: Sequence[Cell], peer: str) -> list[str]:
    """A line for each kind of cache that has to do with a peer."""
    kinds = unique(cell.kv_dtype for cell in cells if cell.names(peer))
    return [
        summary([cell for cell in cells if cell.kv_dtype == kind], peer, kind) for kind in kinds
    ]


def summary(cells: Sequence[Cell], peer: str, kv_dtype: str = SAME) -> str:
    """The geometric mean of the ratios to a peer, and the lowest."""
    peer_of_kind = peer if kv_dtype == SAME else f"{peer}, {kv_dtype}"
    ratios = [(ratio, cell) for cell in cells if (ratio := cell.ratio(peer)) is not None]
    if not ratios:
        return f"x {peer_of_kind}: ran none of the shapes"
    lowest, cell = min(ratios, key=lambda pair: pair[0])
    mean = geometric_mean([ratio for ratio, _ in ratios])
    where = ", ".join(filter(None, (cell.row, cell.column)))
    count = counted(len(ratios), "cell")
    return f"x {peer_of_kind}: geometric mean {mean:.3f} of {count}, lowest {lowest:.2f} ({where})"


def missing_lines(cells: Sequence[Cell]) -> list[str]:
    """Why peers are missing, each reason once."""
    return unique(f"{peer}: {why}" for cell in cells for peer, why in cell.missing.items())


def header(title: str, facts: dict[str, str]) -> list[str]:
    """What is measured, and on what."""
    versions = [f"{name} {facts[name]}" for name in facts if name not in ("device", "date")]
    return [f"{facts['device']}, {facts['date']}", ", ".join(versions), title]


def body(results: Results, *, markdown: bool = False) -> list[str]:
    """What stands below the header of a report."""
    table = markdown_table if markdown else text_table
    columns = unique(cell.column for cell in results.cells)
    return [
        *(f"clocks {when}: {state}" for when, state in results.clocks.items()),
        "",
        *table(columns, lines_of(results.cells, results.peers, columns)),
        "",
        *closing(results.cells, results.peers),
    ]


def closing(cells: Sequence[Cell], peers: Sequence[str]) -> list[str]:
    """The lines below a table."""
    return [*(line for peer in peers for line in summaries(cells, peer)), *missing_lines(cells)]
