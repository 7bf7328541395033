# SPDX-License-Identifier: Apache-2.0
"""One process that fetches one unit: `python cache_process.py ROOT NVCC TEXT [LIMIT_BYTES]`.

Prints whether it was a hit, the bytes of the cubin and the warnings. A limit makes files longer
than that fail to be written, as a full disk does.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

from attn_runtime.cache import CubinCache
from attn_runtime.cache_folder import CacheFolders
from attn_runtime.compiler import Build, Unit, compile_unit
from attn_runtime.toolchain import Toolchain
from fake_nvcc import FakeNvcc, make_unit

TESTS = Path(__file__).parent


def main(root: str, nvcc: str, text: str, limit: str = "") -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")

    def compile_then_fill(unit: Unit, target: str, toolchain: Toolchain) -> Build:
        if limit:
            set_limit(resource.RLIM_INFINITY)
        build = compile_unit(unit, target, toolchain)
        if limit:
            set_limit(int(limit))
        return build

    toolchain = Toolchain(Path(nvcc), "13.0.88", "nvcc-13.0.88-fake")
    cache = CubinCache(
        CacheFolders(Path(root)), find=lambda _: toolchain, compile=compile_then_fill
    )
    for _ in range(2 if limit else 1):
        found = cache.fetch(make_unit(text), "sm_90")
        print("hit" if found.is_hit else "compiled", len(found.build.cubin), found.folder)


def set_limit(size: int) -> None:
    """The longest file that this process may write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def start(root: Path, nvcc: FakeNvcc, text: str = "text", limit: str = "") -> subprocess.Popen[str]:
    """Start such a process, in a session of its own."""
    roots = [TESTS, *(TESTS.parent / name for name in ("codegen", "runtime", "templates"))]
    return subprocess.Popen(
        [sys.executable, __file__, str(root), str(nvcc.path), text, limit],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """The lines that it prints, and what it says on stderr."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines(), err


if __name__ == "__main__":
    main(*sys.argv[1:])
