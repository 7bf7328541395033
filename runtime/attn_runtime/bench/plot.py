# SPDX-License-Identifier: Apache-2.0
"""Figures as a picture, one line per contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from attn_runtime.bench.decode_report import DecodeResults
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.report import OURS, SAME, Results, label_of, unique
from attn_runtime.bench.results import AnyResults

INSTALL: Final = "pip install matplotlib"
_COLOURS: Final = {OURS: "#0b6e4f", "cudnn": "#c05a1c", "flash": "#3a66b0", "fa3": "#7b4aa0"}
_PANELS_PER_LINE: Final = 3


def require_matplotlib(path: Path) -> None:
    """Raise BenchError before anything is timed for a picture that cannot be drawn."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise BenchError(f"--plot needs matplotlib ({error}): {INSTALL}") from error
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise BenchError(
            f"--plot {path}: {path.suffix} is no format of matplotlib's: use one of "
            f"{', '.join(formats)}"
        )


def plot(results: AnyResults, path: Path) -> None:
    """Write the picture; its format is that of the path's suffix. Raises BenchError."""
    if not isinstance(results, Results | DecodeResults):
        raise BenchError(
            "only results of bench prefill and decode have a picture: leave --plot out"
        )
    require_matplotlib(path)
    figure_of(results).savefig(path, dpi=150)


def figure_of(results: Results | DecodeResults) -> Any:
    """The picture, as matplotlib has it."""
    figure = _prefill(results) if isinstance(results, Results) else _decode(results)
    device = results.facts.get("device", "")
    figure.suptitle(f"{results.title}\n{device}, {results.facts.get('date', '')}", fontsize=9)
    return figure


def _prefill(results: Results) -> Any:
    """A panel per row of the table."""
    from matplotlib.figure import Figure

    rows = unique(cell.label for cell in results.cells)
    across = min(_PANELS_PER_LINE, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(4.2 * across, 3.1 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for panel, row in zip(panels, rows, strict=False):
        _draw_row(panel, results, row)
    fastest = max(rate for cell in results.cells for rate in cell.tflops.values())
    panels[0].set_ylim(0, 1.05 * fastest)  # of all panels: they share the axis
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    return figure


def _decode(results: DecodeResults) -> Any:
    """The share of the bandwidth by the bytes that are read, in a stream and cold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, when in zip(panels, ("stream", "cold"), strict=True):
        for kind in unique(cell.kv_dtype for cell in results.cells):
            _draw_shares(panel, results, when, kind)
        panel.set_xscale("log")
        panel.set_title(when, fontsize=9)
        panel.set_xlabel("MB of K and V", fontsize=8)
        panel.set_ylim(0, 105)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="lower right")
    panels[0].set_ylabel("% of the read bandwidth", fontsize=8)
    return figure


def _draw_shares(panel: Any, results: DecodeResults, when: str, kind: str) -> None:
    """Of everybody who reads one kind of cache."""
    known = [(c.kv_bytes, getattr(c, when)) for c in results.cells if c.kv_dtype == kind]
    for name in (OURS, *(peer for peer in results.peers if peer != SAME)):
        points = sorted(
            (size / 1e6, 100 * size / (times[name] * 1e-6) / results.pieces)
            for size, times in known
            if name in times
        )
        if points:
            sizes, shares = zip(*points, strict=True)
            colour = _COLOURS.get(name) if kind == SAME else None
            panel.plot(
                sizes, shares, "o-", label=label_of(name, kind), color=colour, lw=1.6, ms=3.5
            )


def _draw_row(panel: Any, results: Results, row: str) -> None:
    cells = [cell for cell in results.cells if cell.label == row]
    for name in (OURS, *results.peers):
        known = [(cell.column, cell.tflops[name]) for cell in cells if name in cell.tflops]
        if known:
            columns, figures = zip(*known, strict=True)
            width = 2.2 if name == OURS else 1.4
            panel.plot(
                columns, figures, "o-", label=name, color=_COLOURS.get(name), lw=width, ms=3.5
            )
    panel.set_title(f"head_dim {row}" if row[:1].isdigit() and "x" not in row else row, fontsize=9)
    panel.set_ylabel("TFLOP/s", fontsize=8)
    panel.set_xlabel("sequence length", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="lower right")
