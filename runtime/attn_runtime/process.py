# SPDX-License-Identifier: Apache-2.0
"""Runs a compiler and asks the system what it took, the processes that it started included."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Finished(NamedTuple):
    """How a process ended, what it said (both streams), the processor time of all its parts and the
    memory of the largest; 0 where that is not known."""

    code: int
    output: str
    cpu_seconds: float
    peak_bytes: int


def run_and_weigh(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command in a folder to its end. Raises OSError when it cannot be started.

    A process begins as a copy of this one, and the system counts that: a peak no larger than this
    process's own says nothing of the command.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait too
        log.seek(0)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        # Read now: what this process grew by before it was copied is in the copy, too.
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_bytes = usage.ru_maxrss * 1024 if usage.ru_maxrss > own else 0
        return Finished(process.returncode, log.read(), cpu_seconds, peak_bytes)
