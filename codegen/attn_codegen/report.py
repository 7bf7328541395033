# SPDX-License-Identifier: Apache-2.0
"""What the commands print, as text and as JSON data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attn_codegen.config import Arch, AttentionConfig, Mode, reduction_of
from attn_codegen.prose import counted
from attn_codegen.rules import ATTENTION_MODES, Verdict
from attn_codegen.tile import SM80_SHARED_LIMIT, SM90_SHARED_LIMIT, Tiling
from attn_codegen.tiling import tilings
from attn_codegen.writer import Changes

REGISTERS_PER_SM: Final = 65536
REGISTERS_PER_THREAD: Final = 255
_REGISTER_STEP: Final = 8

_DRIFT_WORDS: Final = {
    "created": "missing",
    "changed": "out of date",
    "removed": "left over",
    "edited": "edited by hand",
    "unfinished": "unfinished",
}


def as_json(data: Any) -> str:
    """Indented JSON without a final newline."""
    return json.dumps(data, indent=2)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns two spaces apart; numbers stand to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in [header, *cells])


def _is_number(cell: str) -> bool:
    """- is one that is not known."""
    return cell == "-" or cell.replace(".", "").isdigit()


def changes_text(changes: Changes, out: Path) -> str:
    """One line per file that changed, and one with the counts."""
    lines = [
        f"{kind:<8} {out / path}"
        for kind in ("created", "changed", "removed")
        for path in getattr(changes, kind)
    ]
    counts = (
        f"{len(changes.created)} created, {len(changes.changed)} changed, {len(changes.removed)} "
        f"removed, {len(changes.left_alone)} left alone"
    )
    return "\n".join([*lines, f"{out}: {counts}"])


def changes_json(changes: Changes, out: Path) -> dict[str, Any]:
    """The paths by what was done with them."""
    return {
        kind: [str(out / path) for path in getattr(changes, kind)]
        for kind in ("created", "changed", "removed", "left_alone")
    }


def drift_text(changes: Changes, out: Path) -> str:
    """One line per file that is not what emit would write."""
    return "\n".join(f"{word:<14} {out / path}" for word, path in _drift(changes))


def drift_json(changes: Changes, out: Path) -> dict[str, Any]:
    """Whether the folder is current, and each file that is not."""
    drift = [{"path": str(out / path), "state": word} for word, path in _drift(changes)]
    return {"current": changes.is_current, "drift": drift}


def _drift(changes: Changes) -> list[tuple[str, str]]:
    return [(word, path) for kind, word in _DRIFT_WORDS.items() for path in getattr(changes, kind)]


def kernels_text(kernels: Iterable[tuple[AttentionConfig, Tiling]]) -> str:
    """A table of kernels."""
    rows = [
        (config.name, _shape(tile), tile.warps, tile.stages, tile.threads, tile.shared_bytes)
        for config, tile in kernels
    ]
    header = ("name", "tile", "warps", "stages", "threads", "shared bytes")
    return f"{table(header, rows)}\n{counted(len(rows), 'kernel')}"


_DEVICES: Final = {
    Arch.SM80: "compute capability 8.0 and later",
    Arch.SM90: "compute capability 9.0 (Hopper)",
}


_ROWS: Final = {Mode.WRITE: "rows, each of one token and KV head", Mode.REDUCE: "rows"}
"""What a CTA takes, where it takes no query rows."""


def limits(config: AttentionConfig, tile: Tiling) -> dict[str, int]:
    """What the kernel must stay within: bytes of shared memory, and registers of a thread."""
    share = REGISTERS_PER_SM // (tile.threads * tile.ctas_per_sm) // _REGISTER_STEP * _REGISTER_STEP
    is_large = config.arch is Arch.SM90 or bool(config.tile)
    shared = SM90_SHARED_LIMIT if is_large else SM80_SHARED_LIMIT
    return {"shared_bytes": shared, "registers": min(REGISTERS_PER_THREAD, share)}


def kernel_text(config: AttentionConfig, tile: Tiling) -> str:
    """Everything about one kernel."""
    limit = limits(config, tile)
    is_attention = config.mode in ATTENTION_MODES
    rows, keys = _ROWS.get(config.mode, "query rows"), f" x {tile.cta_s} keys"
    lines = [
        ("tile shape", f"{tile.cta_q} {rows}{keys if is_attention else ''}"),
        ("warps", f"{tile.warps} ({tile.threads} threads)"),
        ("stages", f"{tile.stages}"),
        ("shared memory", f"{tile.shared_bytes} of {limit['shared_bytes']} bytes"),
        ("registers", f"at most {limit['registers']} per thread"),
        ("CTAs per SM", f"{tile.ctas_per_sm} or more"),
        ("devices", _DEVICES[config.arch]),
        ("tiles", ", ".join(word or "default" for word in tilings(config))),
    ]
    if is_attention:
        lines.append(("reduction", reduction_of(config).name))
    axes = [
        (axis, "none" if value is None else value or "default")
        for axis, value in config.axes().items()
    ]
    return "\n".join([config.name, *(f"  {what:<14} {value}" for what, value in [*axes, *lines])])


def device_text(facts: Any) -> str:
    """What the runtime's KernelInfo adds to `kernel_text`."""
    lines = [
        ("on", f"{facts.device_name} (GPU {facts.device}), {facts.target}, {facts.sm_count} SMs"),
        ("registers", f"{facts.registers} per thread"),
        ("spilled", f"{facts.spill_bytes} bytes per thread"),
        ("local memory", f"{facts.local_bytes} bytes per thread"),
        ("static shared", f"{facts.static_shared_bytes} bytes"),
        ("occupancy", f"{facts.ctas_per_sm} CTAs, {facts.warps_per_sm} warps per SM"),
    ]
    return "\n".join(f"  {what:<14} {value}" for what, value in lines)


def builds_text(builds: Sequence[Any]) -> str:
    """A table of the runtime's build reports; seconds are those of the compile, whenever it was."""
    header = ("name", "target", "seconds", "registers", "spill bytes", "shared bytes", "from")
    rows = [
        (
            built.name,
            built.target,
            f"{built.seconds:.1f}",
            built.registers,
            built.spill_bytes,
            built.shared_bytes,
            _origin(built),
        )
        for built in builds
    ]
    compiled = sum(not built.is_hit and built.error is None for built in builds)
    failed = sum(built.error is not None for built in builds)
    counts = (
        f"{compiled} compiled, {len(builds) - compiled - failed} from the cache, {failed} failed"
    )
    return f"{table(header, rows)}\n{counts}"


def builds_json(builds: Sequence[Any]) -> list[dict[str, Any]]:
    """The same as data, with the place of each cubin in the cache."""
    return [
        {
            "name": built.name,
            "target": built.target,
            "from": _origin(built),
            "seconds": built.seconds,
            "registers": built.registers,
            "spill_bytes": built.spill_bytes,
            "shared_bytes": built.shared_bytes,
            "folder": None if built.folder is None else str(built.folder),
            "error": None if built.error is None else str(built.error),
        }
        for built in builds
    ]


def _origin(built: Any) -> str:
    if built.error is not None:
        return "failed"
    return "cache" if built.is_hit else "nvcc"


def verdicts_text(
    config: AttentionConfig, verdicts: Sequence[Verdict], near: Sequence[AttentionConfig]
) -> str:
    """Each rule with its reason, and what to do about those that failed."""
    failed = sum(not verdict.passed for verdict in verdicts)
    head = "is valid" if not failed else f"is refused by {failed} of {len(verdicts)} rules"
    lines = [f"{config.name} {head}", ""]
    width = max(len(verdict.rule.id) for verdict in verdicts)
    for verdict in verdicts:
        word = "pass" if verdict.passed else "FAIL"
        lines.append(f"  {word}  {verdict.rule.id:<{width}}  {verdict.rule.reason}")
        if not verdict.passed:
            lines.append(f"  {'':<{width + 6}}  {verdict.message}")
    if near:
        lines += ["", "nearest valid configurations:", *(f"  {other.name}" for other in near)]
    return "\n".join(lines)


def verdicts_json(
    config: AttentionConfig, verdicts: Sequence[Verdict], near: Sequence[AttentionConfig]
) -> dict[str, Any]:
    """The same as data."""
    rules = [
        {"id": v.rule.id, "passed": v.passed, "reason": v.rule.reason, "hint": v.hint}
        for v in verdicts
    ]
    return {
        "name": config.name,
        "config": config.axes(),
        "valid": all(verdict.passed for verdict in verdicts),
        "rules": rules,
        "nearest": [other.name for other in near],
    }


def _shape(tile: Tiling) -> str:
    return f"{tile.cta_q}x{tile.cta_s}" if tile.cta_s else f"{tile.cta_q}"
