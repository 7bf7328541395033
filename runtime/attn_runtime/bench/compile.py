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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from attn_codegen.config import AttentionConfig
from attn_codegen.prose import counted
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


@dataclass(frozen=True, slots=True)
class Costs:
    """Of all units, `jobs` at a time; `seconds` is what the whole took."""

    units: tuple[Cost, ...]
    jobs: int
    seconds: float

    @property
    def seconds_a_unit(self) -> float:
        """Of the whole."""
        return self.seconds / len(self.units)


def run(configs: Iterable[AttentionConfig], target: str, jobs: int | None = None) -> Costs:
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

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(cores), initializer=settle) as pool:
        units = tuple(pool.map(lambda config: _cost(config, target, nvcc), configs))
    return Costs(units, len(cores), round(time.perf_counter() - begin, 3))


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


def text(costs: Costs) -> list[str]:
    """A line per unit, and the figures of all."""
    units = costs.units
    width = max(len(cost.name) for cost in units)
    head = f"{'name':<{width}}  seconds     MB  cubin KB  registers  spill bytes"
    lines = [
        f"{cost.name:<{width}}  {cost.seconds:7.2f}  {cost.peak_bytes / 1e6:5.0f}  "
        f"{cost.cubin_bytes / 1e3:8.1f}  {cost.registers:9}  {cost.spill_bytes:11}"
        for cost in units
    ]
    return [f"nvcc {nvcc_version()}, {units[0].target}", head, *lines, *_sums(costs)]


def _sums(costs: Costs) -> list[str]:
    units, jobs = costs.units, f"{costs.jobs} job{'' if costs.jobs == 1 else 's'}"
    seconds = [cost.seconds for cost in units]
    return [
        f"{counted(len(units), 'unit')}, one core each: {sum(seconds):.1f} s in total, median "
        f"{median(seconds):.2f} s, slowest {max(seconds):.2f} s, largest "
        f"{max(cost.peak_bytes for cost in units) / 1e6:.0f} MB, "
        f"{sum(cost.spill_bytes > 0 for cost in units)} with spills",
        f"{jobs} took {costs.seconds:.1f} s: {costs.seconds_a_unit:.2f} s a unit",
    ]


def to_json(costs: Costs) -> dict[str, Any]:
    """The same as data."""
    return {"nvcc": nvcc_version(), **asdict(costs)}
