# SPDX-License-Identifier: Apache-2.0
"""Compiles many kernels into the cache, ahead of their first use: side by side, as many as the
memory holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attn_codegen.config import AttentionConfig
from attn_codegen.tiling import tiling
from attn_runtime import driver
from attn_runtime.cache import CubinCache, open_cache
from attn_runtime.cache_entries import entries
from attn_runtime.compiler import own_target, unit_of
from attn_runtime.errors import CompileError, DriverError
from attn_runtime.packing import SHARE, Budget, available_bytes, peaks

DEFAULT_TARGET: Final = "sm_80"


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What became of one kernel. Shared memory is that of a CTA, static and dynamic; spills are
    per thread, in bytes. `error` is None unless nvcc refused the unit."""

    name: str
    target: str
    is_hit: bool
    seconds: float
    """What the compile took, now or when the entry was made."""
    registers: int
    spill_bytes: int
    shared_bytes: int
    folder: Path | None
    """The entry in the cache; None when it could not be kept."""
    error: CompileError | None = None


def default_target() -> str:
    """The GPU of this machine, such as sm_90; sm_80, the oldest that is served, without one."""
    try:
        return driver.context_of_device(driver.current_device()).device.target
    except DriverError:
        return DEFAULT_TARGET


def build(
    configs: Iterable[AttentionConfig],
    jobs: int | None = None,
    target: str | None = None,
    on_done: Callable[[BuildReport], None] | None = None,
    cache: CubinCache | None = None,
) -> list[BuildReport]:
    """Compile every configuration that the cache lacks; the reports are in the order of `configs`.

    `target` is a device such as sm_90, that of this machine unless given; kernels that are written
    for one device alone are compiled for that one.
    At most `jobs` compilers run at a time, one per core unless given, and no more than the memory
    holds by the peaks that were measured (attn_runtime.packing). `on_done` gets each report as it
    comes, in this thread. A unit that nvcc refuses is reported, and the others go on. Raises
    ToolchainError when something must be compiled and there is no compiler.
    """
    chosen = list(dict.fromkeys(configs))
    store = cache or open_cache()
    target = target or default_target()
    reports: dict[AttentionConfig, BuildReport] = {}
    available = available_bytes()
    budget = Budget(sys.maxsize if available is None else int(SHARE * available))
    sizes = peaks(chosen, entries(store.folders.root))
    pool = ThreadPoolExecutor(max_workers=max(1, jobs or len(os.sched_getaffinity(0))))
    try:
        tasks: dict[Future[BuildReport], AttentionConfig] = {
            pool.submit(_build_one, config, target, store, budget, sizes[config.name]): config
            for config in chosen
        }
        for task in as_completed(tasks):
            report = reports[tasks[task]] = task.result()
            if on_done is not None:
                on_done(report)
    finally:
        pool.shutdown(cancel_futures=True)
    return [reports[config] for config in chosen]


def _build_one(
    config: AttentionConfig, target: str, cache: CubinCache, budget: Budget, size: int
) -> BuildReport:
    unit = unit_of(config)
    target = own_target(unit) or target
    try:
        with budget.take(size):
            found = cache.fetch(unit, target)
    except CompileError as error:
        return BuildReport(config.name, target, False, 0.0, 0, 0, 0, None, error)
    build = found.build
    return BuildReport(
        name=config.name,
        target=target,
        is_hit=found.is_hit,
        seconds=build.seconds,
        registers=build.registers,
        spill_bytes=build.spill_bytes,
        shared_bytes=build.shared_bytes + tiling(config).shared_bytes,
        folder=found.folder,
    )
