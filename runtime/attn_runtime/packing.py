# SPDX-License-Identifier: Apache-2.0
"""How many compilers run at a time: as many as the memory holds, by what units were seen to take.

A unit's peak is what its last compile took, whatever has changed since; of one that the cache does
not know, the largest of its kernel family there; and without any, what no unit was seen to exceed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attn_codegen.config import AttentionConfig
from attn_runtime.cache_entries import EntryFacts

DEFAULT_PEAK: Final = 256 << 20
"""Units of the default preset take up to 200 MiB with nvcc 13.0."""
SHARE: Final = 0.8
"""Of the memory that is available when a build begins; the rest is for what else runs."""

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


class Budget:
    """Bytes that jobs share. A job waits until its part is free; one that is larger than all runs
    alone."""

    def __init__(self, total: int) -> None:
        self.total = max(1, total)
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes inside the block."""
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.total)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def peaks(configs: Iterable[AttentionConfig], known: Iterable[EntryFacts]) -> dict[str, int]:
    """Bytes that the compile of each configuration is expected to take, by name."""
    seen: dict[str, tuple[float, int]] = {}
    largest: dict[str, int] = {}
    for facts in known:
        if facts.peak_bytes:
            last = seen.get(facts.name, (0.0, 0))
            seen[facts.name] = max(last, (facts.created, facts.peak_bytes))
            family = _family(facts.name)
            largest[family] = max(largest.get(family, 0), facts.peak_bytes)
    return {config.name: _peak(config.name, seen, largest) for config in configs}


def _peak(name: str, seen: Mapping[str, tuple[float, int]], largest: Mapping[str, int]) -> int:
    if name in seen:
        return seen[name][1]
    return largest.get(_family(name), DEFAULT_PEAK)


def _family(name: str) -> str:
    """Mode and arch: units of one family include the same headers."""
    return "_".join(name.split("_")[:2])


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory that may be had without swapping, within the limit of this machine's container; None
    where neither is known."""
    limits = [found for found in (_free(meminfo), _headroom(cgroup)) if found is not None]
    return max(0, min(limits)) if limits else None


def _free(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _headroom(cgroup: Path) -> int | None:
    """What the container may still take; its page cache is given back when memory is short."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        return None if limit == "max" else int(limit) - used + _file_cache(cgroup)
    except (OSError, ValueError):
        return None


def _file_cache(cgroup: Path) -> int:
    lines = (cgroup / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
