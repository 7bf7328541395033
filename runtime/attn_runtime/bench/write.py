# SPDX-License-Identifier: Apache-2.0
"""`bench write`: microseconds of a cache writer's launch, and its share of the rate of a copy.

Launches follow each other in a CUDA graph, over copies of the rows and of the cache that no L2
holds. A launch reads every new row of K and V once and writes what the cache keeps of it once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from attn_codegen.config import Cache, KvDtype, Mask
from attn_runtime import driver
from attn_runtime.bench import codes, machine, write_report
from attn_runtime.bench.decode_shapes import STREAM_BYTES
from attn_runtime.bench.device import Bench
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.graph import Graph
from attn_runtime.bench.key_stores import KeyStore, Setup, store_of
from attn_runtime.bench.oracle import from_bits
from attn_runtime.bench.report import header
from attn_runtime.bench.shapes import Heads, Shape, cumulated
from attn_runtime.bench.timing import Call, Schedule, measure
from attn_runtime.bench.write_report import WriteFigures, WriteResults
from attn_runtime.build import build
from attn_runtime.cache_writer import CacheWriter

COPY: Final = "copy"
_COPIED: Final = 512 << 20
_SEQUENCE: Final = 2048
_FEWEST_LAUNCHES: Final = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What to time, and how: `tokens` new rows of K and V of each width into an empty cache."""

    head_dims: tuple[int, ...]
    num_kv_heads: int
    tokens: int
    kv_dtypes: tuple[KvDtype, ...]
    setup: Setup
    schedule: Schedule

    @property
    def title(self) -> str:
        """One line that says what the figures are."""
        setup = self.setup
        blocks = "" if setup.cache is Cache.LINEAR else f", {setup.block_len} tokens a block"
        return (
            f"cache writer, {setup.dtype}, {self.tokens} new tokens, {self.num_kv_heads} KV heads, "
            f"{setup.cache} cache{blocks}; medians of {self.schedule.rounds} shuffled rounds"
        )

    def shape(self, head_dim: int) -> Shape:
        """Sequences of 2048 tokens, and what is left, all of them new."""
        full, rest = divmod(self.tokens, _SEQUENCE)
        lens = (_SEQUENCE,) * full + ((rest,) if rest else ())
        heads = Heads(self.num_kv_heads, self.num_kv_heads, head_dim)
        return Shape(lens, lens, heads, Mask.CAUSAL, f"{head_dim}", "")


class WriterCall:
    """A writer over several copies of its rows and of the cache; `rows` are new ones of a copy."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        heads = shape.heads
        self.shape, self.setup = shape, setup
        self.moved_bytes = moved_bytes(shape, setup.kv_dtype)
        self.copies = range(max(1, -(-STREAM_BYTES // self.moved_bytes)))
        dims = (shape.key_num, heads.num_kv_heads, heads.head_dim)
        self.rows = [[bench.normal(dims, setup.dtype) for _ in "kv"] for _ in self.copies]
        self.stores: list[KeyStore] = [store_of(bench, shape, setup) for _ in self.copies]
        self._cu = bench.to_device(np.array(cumulated(shape.k_lens), np.int32))
        self._writer = writer_of(shape, setup)
        self._writer.prepare()

    @property
    def launches(self) -> int:
        """Of one graph: every copy is written as often."""
        return len(self.copies) * -(-_FEWEST_LAUNCHES // len(self.copies))

    def __call__(self, copy: int = 0, stream: int = 0) -> None:
        """One launch."""
        copy %= len(self.copies)
        k_new, v_new = self.rows[copy]
        given = {"k_new": k_new, "v_new": v_new, **self.stores[copy].arguments}
        self._writer(**given, cu_q_len=self._cu, cu_k_len=self._cu, stream=stream)

    def graph(self) -> Graph:
        """All launches."""

        def enqueue(stream: int) -> None:
            for copy in range(self.launches):
                self(copy, stream)

        return Graph(enqueue)


def writer_of(shape: Shape, setup: Setup) -> CacheWriter:
    """What writes the rows of a shape."""
    return CacheWriter(
        num_kv_heads=shape.heads.num_kv_heads,
        head_dim=shape.heads.head_dim,
        dtype=setup.dtype,
        kv_dtype=setup.kv_dtype,
        cache=setup.cache,
    )


def moved_bytes(shape: Shape, kv_dtype: KvDtype) -> int:
    """What a launch reads and writes of K and V."""
    width = shape.heads.head_dim
    read, written = (codes.row_bytes(kind, width) for kind in (KvDtype.SAME, kv_dtype))
    return 2 * shape.key_num * shape.heads.num_kv_heads * (read + written)


def run(request: Request, echo: Callable[[str], None]) -> WriteResults:
    """Time every writer; `echo` gets each line of the report as it becomes known.

    Raises DriverError without a GPU, BenchError when a cache holds what it should not, and what
    compiling and loading raise.
    """
    context = driver.context_of_device(driver.current_device())
    with context:
        _compile_ahead(request)
        bench = Bench(context)
        facts = machine.facts_of(context.device)
        clocks = {"before": machine.clocks(context.device.ordinal)}
        lines = [*header(request.title, facts), f"clocks before: {clocks['before']}", ""]
        for line in [*lines, write_report.line(write_report.HEADING)]:
            echo(line)
        cells = [
            cell for width in request.head_dims for cell in _cells(request, bench, width, echo)
        ]
        clocks["after"] = machine.clocks(context.device.ordinal)
        for line in ["", *write_report.closing(cells)]:
            echo(line)
    return WriteResults(request.title, facts, clocks, tuple(cells))


def _compile_ahead(request: Request) -> None:
    """All kernels side by side."""
    build(
        writer_of(request.shape(width), replace(request.setup, kv_dtype=kind)).config
        for width in request.head_dims
        for kind in request.kv_dtypes
    )


def _cells(
    request: Request, bench: Bench, width: int, echo: Callable[[str], None]
) -> list[WriteFigures]:
    """Check what the writers of one width leave, then time them beside a copy."""
    shape = request.shape(width)
    writers = {
        kind: WriterCall(bench, shape, replace(request.setup, kv_dtype=kind))
        for kind in request.kv_dtypes
    }
    for writer in writers.values():
        check(writer)
    calls: dict[str, Call] = {kind.value: writer.graph() for kind, writer in writers.items()}
    calls[COPY] = _copy(bench)
    times = measure(calls, bench, request.schedule, random.Random(width))
    copied = 2 * _COPIED / (times[COPY] * 1e-3)
    cells = []
    for kind, writer in writers.items():
        microseconds = 1e3 * times[kind.value] / writer.launches
        cells.append(WriteFigures(f"{width} {kind}", writer.moved_bytes, microseconds, copied))
        echo(write_report.line(write_report.row(cells[-1])))
    return cells


def _copy(bench: Bench) -> Call:
    """The driver's copy from one half of an array to the other."""
    array, copy = bench.empty((2 * _COPIED,), "uint8"), driver.pycuda().memcpy_dtod_async
    bench.write(array, value=0x9E3779B9)
    begin = int(array.gpudata)

    def call(_: Any = array) -> None:  # which keeps it
        copy(begin + _COPIED, begin, _COPIED)

    return call


def check(writer: WriterCall) -> None:
    """Write a copy and compare the first and the last sequence in it with the rows that were
    given. Raises BenchError."""
    writer(0)
    cu = cumulated(writer.shape.k_lens)
    for sequence in dict.fromkeys((0, writer.shape.batch_size - 1)):
        own = slice(cu[sequence], cu[sequence + 1])
        kept = writer.stores[0].rows(sequence)
        pairs = writer.stores[0].pairs(sequence)
        for part, name in enumerate("kv"):
            wanted = from_bits(writer.rows[0][part][own].get())
            error = np.abs(from_bits(kept[part][:]) - wanted)
            if not np.all(error <= limit(wanted, pairs[part], writer.setup.kv_dtype)):
                raise BenchError(
                    f"the writer of {writer.setup.kv_dtype} rows of {writer.shape.row} left wrong "
                    f"{name} rows of sequence {sequence}, up to {np.nanmax(error):.3g} off: "
                    "nothing is timed; please report it"
                )


def limit(rows: Any, pairs: Any, kv_dtype: KvDtype) -> Any:
    """How far a value read may be from the one written, [..., head_dim]: half a step of the row,
    and a little for float32; e4m3 keeps four significant bits, down to steps of 2^-9 scale."""
    if kv_dtype.has_pairs:
        return pairs[..., :1] * (0.5 + 2.0**-14)
    if kv_dtype is KvDtype.E4M3:
        least = codes.SCALE[kv_dtype] * 2.0**-10
        return np.maximum(np.abs(rows) * 2.0**-4, least) * (1 + 2.0**-20)
    return np.zeros_like(rows)
