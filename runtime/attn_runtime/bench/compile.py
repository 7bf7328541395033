# SPDX-License-Identifier: Apache-2.0
"""`bench compile`: what nvcc costs per unit, as a build pays it. Needs no GPU.

Each compile is a process of its own, held to one core, with the flags of the cubin cache, which is
neither read nor written. Peak memory is that of the largest of its processes (nvcc starts several,
one after the other).
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from attn_codegen.config import AttentionConfig
from attn_runtime.bench.machine import nvcc_version
from attn_runtime.compiler import REPORT_FLAGS, Unit, flags, own_target, parse_log, unit_of
from attn_runtime.errors import CompileError
from attn_runtime.files import write_tree
from attn_runtime.process import run_and_weigh
from attn_runtime.toolchain import find_nvcc

DEFAULT_TARGET: Final = "sm_90"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one unit. Registers and spills (stores and loads) are per thread."""

    name: str
    target: str
    seconds: float
    peak_bytes: int
    cubin_bytes: int
    registers: int
    spill_bytes: int


def run(configs: Iterable[AttentionConfig], target: str, jobs: int | None = None) -> list[Cost]:
    """Compile every unit, `jobs` at a time (one per core), each on a core of its own.

    Raises ToolchainError without nvcc, CompileError when it refuses a unit, DeviceError when a
    kernel cannot serve the target.
    """
    nvcc = find_nvcc().nvcc
    cores = sorted(os.sched_getaffinity(0))[:jobs]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)

    def settle() -> None:
        os.sched_setaffinity(threading.get_native_id(), {free.get()})

    with ThreadPoolExecutor(len(cores), initializer=settle) as pool:
        return list(pool.map(lambda config: _cost(config, target, nvcc), configs))


def _cost(config: AttentionConfig, target: str, nvcc: Path) -> Cost:
    """Compile in a temporary folder; the thread's core is inherited."""
    unit = unit_of(config)
    target = own_target(unit) or target
    folder = Path(tempfile.mkdtemp(prefix=f"attn-codegen-{unit.name}-"))
    try:
        write_tree(folder, dict(unit.texts))
        return _timed(unit, target, nvcc, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _timed(unit: Unit, target: str, nvcc: Path, folder: Path) -> Cost:
    output = f"{unit.name}.cubin"
    inputs = ("-I", ".", "-o", output, unit.file)
    command = (str(nvcc), *flags(unit, target), *REPORT_FLAGS, *inputs)
    begin = time.perf_counter()
    done = run_and_weigh(command, folder)
    seconds = time.perf_counter() - begin
    if done.code != 0:
        raise CompileError(unit.name, command, done.output, Path(unit.file))
    said = parse_log(done.output, unit.symbol)
    return Cost(
        name=unit.name,
        target=target,
        seconds=round(seconds, 3),
        peak_bytes=done.peak_bytes,
        cubin_bytes=(folder / output).stat().st_size,
        registers=said["registers"],
        spill_bytes=said["spill_stores"] + said["spill_loads"],
    )


def text(costs: Sequence[Cost]) -> list[str]:
    """A line per unit, and the figures of all."""
    width = max(len(cost.name) for cost in costs)
    head = f"{'name':<{width}}  seconds     MB  cubin KB  registers  spill bytes"
    lines = [
        f"{cost.name:<{width}}  {cost.seconds:7.2f}  {cost.peak_bytes / 1e6:5.0f}  "
        f"{cost.cubin_bytes / 1e3:8.1f}  {cost.registers:9}  {cost.spill_bytes:11}"
        for cost in costs
    ]
    seconds = [cost.seconds for cost in costs]
    total = (
        f"{len(costs)} units, one core each: {sum(seconds):.1f} s in total, median "
        f"{median(seconds):.2f} s, slowest {max(seconds):.2f} s, largest "
        f"{max(cost.peak_bytes for cost in costs) / 1e6:.0f} MB, "
        f"{sum(cost.spill_bytes > 0 for cost in costs)} with spills"
    )
    return [f"nvcc {nvcc_version()}, {costs[0].target}", head, *lines, total]


def to_json(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """The same as data."""
    return [asdict(cost) for cost in costs]
