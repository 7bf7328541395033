# SPDX-License-Identifier: Apache-2.0
"""`bench prefill`: TFLOP/s of every shape, beside the peers, in one process."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from attn_codegen.config import Cache, KvDtype
from attn_codegen.presets import with_reductions
from attn_runtime import driver
from attn_runtime.bench import machine, oracle, peers, report
from attn_runtime.bench.device import Bench
from attn_runtime.bench.errors import Unavailable
from attn_runtime.bench.key_stores import Setup
from attn_runtime.bench.ours import OurCall, attention_of
from attn_runtime.bench.peers import Contender
from attn_runtime.bench.report import OURS, SAME, Cell, Results
from attn_runtime.bench.shapes import Shape
from attn_runtime.bench.timing import Call, Schedule, measure
from attn_runtime.build import build
from attn_runtime.driver import Context
from attn_runtime.kernels import candidates

Echo = Callable[[str], None]
_WORK_MS: Final = 500.0
_MOST_QUEUED: Final = 400


@dataclass(frozen=True, slots=True)
class Request:
    """What to time, and how: every shape on a cache of each of `kv_dtypes`."""

    shapes: tuple[Shape, ...]
    setup: Setup
    peers: tuple[str, ...]
    schedule: Schedule
    title: str
    kv_dtypes: tuple[KvDtype, ...] = (KvDtype.SAME,)

    @property
    def setups(self) -> dict[str, Setup]:
        """By kv_dtype. Codes run beside the plain cache, whatever was asked for."""
        kinds = self.kv_dtypes if self.is_plain else (KvDtype.SAME, *self.kv_dtypes)
        return {kind.value: replace(self.setup, kv_dtype=kind) for kind in kinds}

    @property
    def is_plain(self) -> bool:
        """Nothing is quantised."""
        return set(self.kv_dtypes) == {KvDtype.SAME}

    @property
    def contenders(self) -> tuple[str, ...]:
        """What ours is compared with, in the order of the table."""
        return self.peers if self.is_plain else (SAME, *self.peers)


def title_of(
    setup: Setup, schedule: Schedule, what: str, kv_dtypes: tuple[KvDtype, ...] = (KvDtype.SAME,)
) -> str:
    """One line that says what the figures are."""
    cache = f"{setup.cache} cache"
    if kv_dtypes != (KvDtype.SAME,):
        cache += f" of {', '.join(kv_dtypes)}"
    if setup.cache is not Cache.LINEAR:
        layout = f"{setup.layout}, " if setup.cache is Cache.PAGED else ""
        cache += f" ({layout}{setup.block_len} tokens a block)"
    family = f"{setup.arch} kernels, " if setup.arch else ""
    state = "cool card" if schedule.pause_s else "warm card"
    return (
        f"prefill, {setup.dtype}, {cache}, {family}{what}; "
        f"medians of {schedule.rounds} shuffled rounds, {state}"
    )


def run(request: Request, echo: Echo) -> Results:
    """Time every shape; `echo` gets each line of the report as it becomes known.

    Raises DriverError without a GPU, BenchError when an output is wrong, and what compiling and
    loading raise.
    """
    context = driver.context_of_device(driver.current_device())
    with context:
        _compile_ahead(request, context)
        bench = Bench(context)
        facts = machine.facts_of(context.device)
        clocks = {"before": machine.clocks(context.device.ordinal)}
        for line in (*report.header(request.title, facts), f"clocks before: {clocks['before']}"):
            echo(line)
        echo("")
        cells = _cells(request, bench, clocks, echo)
        found = Results(request.title, request.contenders, facts, clocks, tuple(cells))
        echo("")
        echo(f"clocks at work: {clocks['at work']}")
        for line in report.closing(cells, request.contenders):
            echo(line)
    return found


def _compile_ahead(request: Request, context: Context) -> None:
    """All kernels side by side; a unit that fails is reported when it is loaded."""
    attentions = [
        attention_of(shape, setup, context.device.ordinal)
        for shape in request.shapes
        for setup in request.setups.values()
    ]
    build(
        with_reductions(
            config for attention in attentions for config in candidates(attention.settings, context)
        )
    )


def _cells(request: Request, bench: Bench, clocks: dict[str, str], echo: Echo) -> list[Cell]:
    """Every cell; a row of the table is shown when it is complete."""
    rows = report.unique(shape.row for shape in request.shapes)
    columns = report.unique(shape.column for shape in request.shapes)
    widest = max(len(report.label_of(row, kind)) for row in rows for kind in request.kv_dtypes)
    cells: list[Cell] = []
    for row in rows:
        own = [shape for shape in request.shapes if shape.row == row]
        timed = [cell for shape in own for cell in _time_shape(request, bench, shape, clocks)]
        lines = report.lines_of(timed, request.contenders, columns)
        table = report.text_table(columns, lines, widest)
        has_heading = row == rows[0] and any(columns)
        for line in table[0 if has_heading else 1 :]:
            echo(line)
        cells += timed
    return cells


def _time_shape(request: Request, bench: Bench, shape: Shape, clocks: dict[str, str]) -> list[Cell]:
    """Check ours on every kind of cache, then time it beside every peer that runs the shape."""
    contenders: dict[str, Contender] = {}
    for kind, setup in request.setups.items():
        ours = OurCall(bench, shape, setup)
        oracle.spot_check(ours)
        contenders[kind] = Contender(ours, shape.flops)
    missing: dict[str, str] = {}
    for name in request.peers:
        try:
            contenders[name] = peers.build(name, bench, shape, request.setup)
        except Unavailable as error:
            missing[name] = str(error)
    calls = {name: contender.call for name, contender in contenders.items()}
    times = measure(calls, bench, request.schedule, random.Random(shape.token_num))
    if shape is request.shapes[-1]:
        clocks["at work"] = _clocks_at_work(ours, times[kind], bench)
    rates = {name: contenders[name].flops / ms / 1e9 for name, ms in times.items()}
    del contenders, calls, ours
    free_torch_memory()
    return [
        Cell(
            shape.row,
            shape.column,
            _seen_from(kind, rates, request.peers),
            _seen_from(kind, times, request.peers),
            missing,
            kind.value,
        )
        for kind in request.kv_dtypes
    ]


def _seen_from(
    kind: KvDtype, figures: dict[str, float], peers: tuple[str, ...]
) -> dict[str, float]:
    """The figures of a cell: of ours on its kind of cache, on the plain one, and of the peers."""
    names = {OURS: kind.value, **{peer: peer for peer in peers}}
    if kind is not KvDtype.SAME:
        names[SAME] = SAME
    return {name: figures[known] for name, known in names.items() if known in figures}


def _clocks_at_work(call: Call, milliseconds: float, bench: Bench) -> str:
    """Asks nvidia-smi, which takes a while, behind a full queue."""
    for _ in range(max(1, min(_MOST_QUEUED, int(_WORK_MS / milliseconds)))):
        call()
    state = machine.clocks(bench.context.device.ordinal)
    bench.synchronize()
    return state


def free_torch_memory() -> None:
    """Arrays of the next shape may be PyCUDA's, which do not come from torch's pool."""
    torch = sys.modules.get("torch")
    if torch is not None:
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
