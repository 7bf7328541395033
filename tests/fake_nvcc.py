# SPDX-License-Identifier: Apache-2.0
"""A stand-in for nvcc: a real program that counts its runs, sleeps, and writes a cubin or fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attn_runtime.compiler import Unit
from attn_runtime.errors import ToolchainError
from attn_runtime.toolchain import Toolchain

GENCODE = "-gencode=arch=compute_80,code=sm_80"

_SCRIPT = """#!/bin/sh
case "$1" in
  --version)
    echo version >>{log}
    echo 'nvcc: NVIDIA (R) Cuda compiler driver'
    echo 'Cuda compilation tools, release {release}, V{version}'
    exit 0 ;;
  --dryrun)
    echo '#$ _HERE_={folder}'
    exit 0 ;;
esac
echo compile $$ >>{log}
while [ "$1" != -o ]; do shift; done
sleep {seconds}
{compile}
"""

_SUCCEED = """\
cat "$3" >"$2"
echo "ptxas info    : Compiling entry function 'unit' for 'sm_90'"
echo '    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads'
echo 'ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem'"""

_FAIL = """\
echo "$3(7): error: expected a ';'" >&2
exit 2"""


@dataclass(frozen=True)
class FakeNvcc:
    """The program and the file that it logs its runs to."""

    path: Path
    log: Path

    @property
    def toolchain(self) -> Toolchain:
        """As find_nvcc would return it."""
        return Toolchain(self.path, "13.0.88", "nvcc-13.0.88-fake")

    def runs(self, kind: str) -> int:
        """How often it was run to `compile` or for its `version`."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return sum(line.split()[0] == kind for line in lines)

    def pids(self) -> list[int]:
        """The processes that compiled, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith("compile")]


def make_fake_nvcc(
    folder: Path, *, seconds: float = 0.0, version: str = "13.0.88", fails: bool = False
) -> FakeNvcc:
    """Write the program into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "nvcc", folder / "runs"
    path.write_text(
        _SCRIPT.format(
            log=log,
            release=version.rpartition(".")[0],
            version=version,
            folder=folder,
            seconds=seconds,
            compile=_FAIL if fails else _SUCCEED,
        )
    )
    path.chmod(0o755)
    return FakeNvcc(path, log)


def make_unit(text: str = "unit", *, name: str = "unit", header: str = "header") -> Unit:
    """A unit of two files."""
    texts = {"attn/a.h": header, f"kernels/{name}.cu": text}
    return Unit(name, name, f"kernels/{name}.cu", GENCODE, texts)


def no_nvcc(memo: Path | None) -> Toolchain:
    """find_nvcc on a machine without one."""
    raise ToolchainError("nvcc was not found: not on PATH")
