# SPDX-License-Identifier: Apache-2.0
"""What building the default preset takes: `python tests/bench_vendor.py [JOBS]` prints it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attn_codegen import presets, renderer, writer

JOBS = 2


def build_default(jobs: int = JOBS, *options: str) -> str:
    """Configure (with options for cmake) and build in a temporary folder; time and memory of it."""
    with tempfile.TemporaryDirectory() as name:
        folder, build = Path(name) / "generated", Path(name) / "build"
        writer.write(renderer.render(presets.preset("default")), folder)
        run("cmake", "-S", folder, "-B", build, *options)
        started = time.perf_counter()
        run("cmake", "--build", build, "-j", jobs)
        seconds = time.perf_counter() - started
        units = len(list(build.rglob("*.cu.o")))
        size = sum(path.stat().st_size for path in build.glob("libattn.*") if not path.is_symlink())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        f"{units} units, {jobs} jobs on {len(os.sched_getaffinity(0))} cores: {seconds:.0f} s "
        f"({used.ru_utime + used.ru_stime:.0f} s of one core), largest process "
        f"{used.ru_maxrss / 1024:.0f} MiB, library {size / 2**20:.1f} MiB"
    )


def run(*command: object) -> None:
    """A command that prints only where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.args}\n{done.stdout}{done.stderr}")


def main() -> None:
    """Arguments after JOBS are for cmake, such as -DCMAKE_CUDA_ARCHITECTURES=80."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    print(build_default(jobs, *sys.argv[2:]))


if __name__ == "__main__":
    main()
