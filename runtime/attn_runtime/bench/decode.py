# SPDX-License-Identifier: Apache-2.0
"""`bench decode`: microseconds of a launch, cold and in a stream, and the share of the bandwidth.

Cold: one launch, replayed as a graph behind 256 MB of writes, as when other layers ran in between.
Stream: launches back to back in a graph, over copies of the cache that together no L2 holds, as
when attention follows attention.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from attn_codegen.config import Dtype, KvDtype
from attn_runtime import driver
from attn_runtime.bench import decode_peers, decode_report, machine, oracle
from attn_runtime.bench.bandwidth import Bandwidth, measure_bandwidth
from attn_runtime.bench.decode_peers import Capture
from attn_runtime.bench.decode_pool import DecodeCall, DecodeSetup, Pool, blocks_of
from attn_runtime.bench.decode_report import DecodeFigures, DecodeResults
from attn_runtime.bench.decode_shapes import DecodeCell
from attn_runtime.bench.device import FLUSH_BYTES, Bench
from attn_runtime.bench.errors import Unavailable
from attn_runtime.bench.graph import Graph
from attn_runtime.bench.prefill import free_torch_memory
from attn_runtime.bench.report import OURS, SAME, header, label_of
from attn_runtime.bench.timing import Call, Schedule, measure

_COLD_SAMPLES: Final = 15
_EMPTY_LAUNCHES: Final = 50
_READ_BYTES: Final = 2 << 30
"""That the bandwidth is measured over."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to time, and how: every cell on a cache of each of `kv_dtypes`, in their order."""

    cells: tuple[DecodeCell, ...]
    setup: DecodeSetup
    peers: tuple[str, ...]
    schedule: Schedule

    @property
    def kv_dtypes(self) -> tuple[KvDtype, ...]:
        """Of the cells; the cache that is not quantised comes first, so that codes can be compared
        with it as soon as they are timed."""
        kinds = dict.fromkeys(cell.kv_dtype for cell in self.cells)
        return tuple(sorted(kinds, key=lambda kind: kind is not KvDtype.SAME))

    @property
    def contenders(self) -> tuple[str, ...]:
        """What ours is compared with, in the order of the table."""
        is_beside_codes = len(self.kv_dtypes) > 1 and KvDtype.SAME in self.kv_dtypes
        return (SAME, *self.peers) if is_beside_codes else self.peers

    @property
    def title(self) -> str:
        """One line that says what the figures are."""
        setup, heads = self.setup, self.setup.heads
        kinds = self.kv_dtypes
        cache = "" if kinds == (KvDtype.SAME,) else f" on {', '.join(kinds)}"
        queries = max(self.cells[0].shape.q_lens)
        scattered = ", scattered" if setup.is_scattered else ""
        return (
            f"decode, {setup.dtype}{cache}, {heads.num_heads}/{heads.num_kv_heads} heads of "
            f"{heads.head_dim}, {queries} query token{'' if queries == 1 else 's'}, paged cache "
            f"({setup.layout}, {setup.block_len} tokens a block{scattered}); medians"
        )


@dataclass(frozen=True, slots=True)
class _Stand:
    """What all cells of one kind of cache share."""

    bench: Bench
    setup: DecodeSetup
    pool: Pool
    flushed: Any
    request: Request

    @classmethod
    def of(cls, bench: Bench, flushed: Any, request: Request, kind: KvDtype) -> _Stand:
        setup = replace(request.setup, kv_dtype=kind)
        blocks = max(
            cell.rotation * blocks_of(cell.shape, setup.block_len)
            for cell in request.cells
            if cell.kv_dtype is kind
        )
        return cls(bench, setup, Pool(bench, setup, blocks), flushed, request)


def run(request: Request, echo: Callable[[str], None]) -> DecodeResults:
    """Time every cell; `echo` gets each line of the report as it becomes known.

    Raises DriverError without a GPU, BenchError when an output is wrong, and what compiling and
    loading raise.
    """
    context = driver.context_of_device(driver.current_device())
    with context:
        bench = Bench(context)
        facts = machine.facts_of(context.device)
        clocks = {"before": machine.clocks(context.device.ordinal)}
        flushed = bench.empty((FLUSH_BYTES,), "uint8")
        bandwidth, floors = _bandwidth(bench), _floors(bench, flushed)
        lines = [*header(request.title, facts), f"clocks before: {clocks['before']}"]
        lines.append(decode_report.ceilings(bandwidth.sequential, bandwidth.pieces, floors))
        for line in [*lines, ""]:
            echo(line)
        cells = _cells(bench, flushed, request, bandwidth.pieces, echo)
        clocks["after"] = machine.clocks(context.device.ordinal)
        for line in ["", *decode_report.closing(cells, request.contenders)]:
            echo(line)
    measured = (bandwidth.sequential, bandwidth.pieces, floors)
    return DecodeResults(request.title, request.contenders, facts, clocks, *measured, tuple(cells))


def _bandwidth(bench: Bench) -> Bandwidth:
    return measure_bandwidth(bench, bench.normal((_READ_BYTES // 2,), Dtype.BF16))


def _floors(bench: Bench, flushed: Any) -> dict[str, float]:
    """Microseconds of a kernel that does nothing worth mentioning."""
    small = bench.empty((8,), "uint16")

    def enqueue(count: int) -> Callable[[int], None]:
        def launches(stream: int) -> None:
            for _ in range(count):
                bench.write(small, stream=stream)

        return launches

    one, many = Graph(enqueue(1)), Graph(enqueue(_EMPTY_LAUNCHES))
    return {
        "cold": 1e3 * median(bench.cold_milliseconds(one, flushed) for _ in range(9)),
        "stream": 1e3 * bench.milliseconds(many, 20, 10e-6) / _EMPTY_LAUNCHES,
    }


def _cells(
    bench: Bench, flushed: Any, request: Request, pieces: float, echo: Callable[[str], None]
) -> list[DecodeFigures]:
    """Every cell, shown as soon as it is known, below a heading as wide as any figure."""
    peers = request.contenders
    columns = decode_report.heading(peers)
    labels = [label_of(cell.shape.row, cell.kv_dtype.value) for cell in request.cells]
    widest = [max(labels, key=len), "99999", "99999.9", "99999.9", "9.99", "100 %"]
    widest += ["99.99"] * 2 * len(peers)
    echo(decode_report.aligned(columns, columns, [widest]))
    plain: dict[str, DecodeFigures] = {}
    found = []
    for kind in request.kv_dtypes:
        stand = _Stand.of(bench, flushed, request, kind)
        for cell in request.cells:
            if cell.kv_dtype is kind:
                figures = _beside_plain(_time_cell(stand, cell), plain)
                words = decode_report.row(figures, pieces, peers)
                echo(decode_report.aligned(words, columns, [widest]))
                found.append(figures)
    return found


def _beside_plain(figures: DecodeFigures, plain: dict[str, DecodeFigures]) -> DecodeFigures:
    """Codes with the times of the plain cache beside them; a plain cell is kept in `plain`."""
    if figures.kv_dtype == SAME:
        plain[figures.name] = figures
    elif same := plain.get(figures.name):
        cold, stream = (
            figures.cold | {SAME: same.cold[OURS]},
            figures.stream | {SAME: same.stream[OURS]},
        )
        return replace(figures, cold=cold, stream=stream)
    return figures


def _time_cell(stand: _Stand, cell: DecodeCell) -> DecodeFigures:
    """Check ours, then time it beside every peer that runs the cell."""
    request = stand.request
    call = DecodeCall(stand.bench, cell, stand.setup, stand.pool)
    oracle.spot_check(call)
    contenders: dict[str, Capture] = {OURS: decode_peers.capture_ours(call)}
    missing: dict[str, str] = {}
    for name in request.peers:
        try:
            contenders[name] = decode_peers.build(name, cell, stand.setup)
        except Unavailable as error:
            missing[name] = str(error)
    rng = random.Random(cell.shape.key_num)
    stream = _stream_times(stand, cell, contenders, rng)
    cold = _cold_times(stand, {name: one([0]) for name, one in contenders.items()}, rng)
    del contenders
    free_torch_memory()
    kind = cell.kv_dtype.value
    return DecodeFigures(cell.shape.row, cell.kv_bytes, cold, stream, missing, kind)


def _stream_times(
    stand: _Stand, cell: DecodeCell, contenders: dict[str, Capture], rng: random.Random
) -> dict[str, float]:
    """Microseconds of a launch among others."""
    copies = range(cell.launches)
    graphs = {name: capture(copies) for name, capture in contenders.items()}
    times = measure(graphs, stand.bench, stand.request.schedule, rng)
    return {name: 1e3 * ms / cell.launches for name, ms in times.items()}


def _cold_times(stand: _Stand, graphs: dict[str, Call], rng: random.Random) -> dict[str, float]:
    """Microseconds of a launch that finds nothing in L2."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    names: Sequence[str] = list(graphs)
    for _ in range(_COLD_SAMPLES):
        for name in rng.sample(names, len(names)):
            samples[name].append(1e3 * stand.bench.cold_milliseconds(graphs[name], stand.flushed))
    return {name: median(times) for name, times in samples.items()}
