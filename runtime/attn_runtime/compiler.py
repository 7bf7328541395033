# SPDX-License-Identifier: Apache-2.0
"""One unit of source to one cubin, through nvcc; the log is in the error."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from attn_codegen.config import AttentionConfig
from attn_codegen.renderer import kernel_entry, unit_sources
from attn_runtime.errors import CompileError, DeviceError, ToolchainError
from attn_runtime.files import write_tree
from attn_runtime.process import run_and_weigh
from attn_runtime.toolchain import Toolchain

BASE_FLAGS: Final = ("-cubin", "-std=c++17")
REPORT_FLAGS: Final = ("-Xptxas", "-v")
"""Registers and spills in the log; the code is the same without them."""

# They would change the code behind the cache's back.
_FLAG_VARIABLES: Final = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")

_VIRTUAL = re.compile(r"arch=compute_(\d+)([af]?)\b")
_TARGET = re.compile(r"sm_(\d{2,3})([af]?)")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_COUNTS: Final = {
    "registers": re.compile(r"Used (\d+) registers"),
    "stack_bytes": re.compile(r"(\d+) bytes stack frame"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
    "shared_bytes": re.compile(r"(\d+) bytes smem"),
}
_HINTS: Final = {
    "Unsupported gpu architecture": "this nvcc is older than the GPU; install a newer CUDA toolkit",
    "unsupported GNU version": "nvcc does not take this g++; set NVCC_CCBIN to an older one",
    "Failed to preprocess host compiler": "nvcc needs a host compiler; install g++",
    "command not found": "nvcc needs a host compiler; install g++",
    "No space left on device": "the temporary folder is full; free it, or set TMPDIR",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """What nvcc is given: every byte that is compiled, by path, and which file is the unit."""

    name: str
    symbol: str
    file: str
    gencode: str
    """The gencode flag of the kernel family; `flags` puts the device in."""
    texts: Mapping[str, str] = field(repr=False)
    native: bool = False
    """Whether the PTX is of the device, too, and not of the family."""


@dataclass(frozen=True, slots=True)
class Build:
    """A cubin and what the compiler said of it. Bytes are per thread; shared_bytes is the static
    shared memory of a CTA, peak_bytes the memory of the largest process of the compile."""

    name: str
    symbol: str
    target: str
    seconds: float
    registers: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    command: tuple[str, ...] = field(repr=False)
    log: str = field(repr=False)
    cubin: bytes = field(repr=False)
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def spill_bytes(self) -> int:
        """Bytes of registers that a thread stores and loads for want of room."""
        return self.spill_stores + self.spill_loads


@lru_cache(maxsize=1024)
def unit_of(config: AttentionConfig) -> Unit:
    """The source of a configuration, rendered."""
    entry = kernel_entry(config)
    return Unit(
        entry.name, entry.symbol, entry.file, entry.gencode, unit_sources(config), entry.native
    )


def flags(unit: Unit, target: str) -> tuple[str, ...]:
    """The flags of a compile, without paths.

    A family without a letter is PTX that is compiled for the device at hand: compute_80 for sm_90,
    say, or compute_90 of a native unit; one with a letter (compute_90a) holds the instructions of
    one device alone. Raises DeviceError when the family cannot serve the target.
    """
    family, letter = _family(unit)
    real = _TARGET.fullmatch(target)
    if real is None:
        raise DeviceError(f"target {target!r} is no GPU: use sm_ and a number, such as sm_90")
    if letter and real[1] != family:
        raise DeviceError(
            f"{unit.name} is written for sm_{family}{letter} alone, and the target is {target}: "
            "take a kernel of another family"
        )
    if int(real[1]) < int(family):
        raise DeviceError(
            f"{unit.name} needs a GPU of sm_{family} or later, and the target is {target}: "
            f"use sm_{family} or a later one"
        )
    if letter:
        return (*BASE_FLAGS, f"-gencode=arch=compute_{family}{letter},code=sm_{family}{letter}")
    virtual = target.removeprefix("sm_") if unit.native else family
    return (*BASE_FLAGS, f"-gencode=arch=compute_{virtual},code={target}")


def own_target(unit: Unit) -> str | None:
    """The one device that a unit is written for, such as sm_90; None when it serves later ones."""
    family, letter = _family(unit)
    return f"sm_{family}" if letter else None


def _family(unit: Unit) -> tuple[str, str]:
    """The number and the letter of the unit's virtual architecture."""
    match = _VIRTUAL.search(unit.gencode)
    if match is None:
        raise ValueError(f"{unit.name} has the gencode {unit.gencode!r}, which names no compute_XY")
    return match[1], match[2]


def compile_unit(
    source: Unit | AttentionConfig,
    target: str,
    toolchain: Toolchain,
    *,
    extra_flags: Sequence[str] = (),
) -> Build:
    """Compile for `target`, such as sm_90.

    Raises CompileError, with the source kept in a temporary folder that the error names;
    ToolchainError when nvcc or the temporary folder is gone; DeviceError when the family cannot
    serve the target.
    """
    unit = unit_of(source) if isinstance(source, AttentionConfig) else source
    options = (*flags(unit, target), *extra_flags)
    folder = _written(unit)
    try:
        build = _compile(unit, target, toolchain, options, folder)
    except CompileError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return build


def _written(unit: Unit) -> Path:
    """A temporary folder with the source."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"attn-codegen-{unit.name}-"))
    except OSError as error:
        raise _no_room(error) from error
    try:
        write_tree(folder, dict(unit.texts))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _no_room(error) from error
    return folder


def _no_room(error: OSError) -> ToolchainError:
    return ToolchainError(
        f"nothing can be compiled: the temporary folder cannot be written ({error}); "
        "free it, or set TMPDIR to a folder with room"
    )


def _compile(
    unit: Unit, target: str, toolchain: Toolchain, options: Sequence[str], folder: Path
) -> Build:
    """Run nvcc inside the folder, so that no path of this machine gets into the log."""
    output = f"{unit.name}.cubin"
    command = (str(toolchain.nvcc), *options, *REPORT_FLAGS, "-I", ".", "-o", output, unit.file)
    started = time.perf_counter()
    environment = {key: word for key, word in os.environ.items() if key not in _FLAG_VARIABLES}
    try:
        done = run_and_weigh(command, folder, environment)
    except OSError as error:
        raise ToolchainError(f"{toolchain.nvcc} cannot be run: {error}") from error
    seconds = time.perf_counter() - started
    try:
        cubin = (folder / output).read_bytes() if done.code == 0 else b""
    except OSError:
        cubin = b""
    if not cubin:
        log = f"{done.output.rstrip()}\nexit code {done.code}"
        raise CompileError(unit.name, command, log, folder / unit.file, _hint(done.output))
    return Build(
        name=unit.name,
        symbol=unit.symbol,
        target=target,
        seconds=round(seconds, 3),
        **parse_log(done.output, unit.symbol),
        command=command,
        log=done.output,
        cubin=cubin,
        cpu_seconds=round(done.cpu_seconds, 3),
        peak_bytes=done.peak_bytes,
    )


def parse_log(log: str, symbol: str) -> dict[str, int]:
    """Registers, stack, spills and static shared memory of one entry, from ptxas's report; the most
    of it and of the one for plain calls.

    A count that the report does not give is 0.
    """
    parts = _ENTRY.split(log)  # text before, then name and text of each entry
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    own = [texts.get(symbol, ""), texts.get(f"{symbol}_plain", "")]
    return {
        name: max(int(found) for text in own for found in (*pattern.findall(text)[:1], 0))
        for name, pattern in _COUNTS.items()
    }


def _hint(log: str) -> str:
    return next((hint for sign, hint in _HINTS.items() if sign in log), "")
