# SPDX-License-Identifier: Apache-2.0
"""What this machine has of what the runtime needs, and what to do about the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Final

from attn_codegen.prose import counted
from attn_runtime import kernel_folder
from attn_runtime.cache_folder import VARIABLE, cache_folders
from attn_runtime.driver import INSTALL
from attn_runtime.driver_library import DriverLibrary, NoDriver
from attn_runtime.errors import KernelFolderError, ToolchainError
from attn_runtime.kernel import LEAST_CAPABILITY
from attn_runtime.toolchain import find_nvcc

LEAST_CUDA: Final = (12, 0)
"""Of nvcc: the first that knows sm_90a and C++17 in device code."""
LEAST_FREE: Final = 256 << 20
"""Bytes in the cache folder: the default preset takes about 30 MB, and a compile needs room."""

_UNIT: Final = "__global__ void nothing() {}\n"
_RUN_SECONDS: Final = 60


class State(StrEnum):
    """Of one line."""

    OK = "ok"
    MISSING = "missing"
    NOT_NEEDED = "not needed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is needed: what was found, or what to do."""

    what: str
    state: State
    text: str

    @property
    def is_ok(self) -> bool:
        """Whether nothing has to be done."""
        return self.state is not State.MISSING


def examine() -> list[Check]:
    """Every check, in the order in which they should be mended. Changes nothing but a file that it
    writes and removes again."""
    exported = _exported()
    compiler = [_nvcc(), _host_compiler()]
    if exported is not None and exported.is_ok:
        compiler = [
            Check(c.what, c.state if c.is_ok else State.NOT_NEEDED, c.text) for c in compiler
        ]
    checks = [*compiler, *_driver_and_gpus()]
    checks += [_package("PyCUDA", "pycuda"), _package("cuda-bindings", "cuda.bindings")]
    checks.append(_cache())
    return checks if exported is None else [*checks, exported]


def _nvcc() -> Check:
    try:
        found = find_nvcc()
    except ToolchainError as error:
        return Check("nvcc", State.MISSING, str(error))
    text = f"{found.version} at {found.nvcc}"
    if tuple(int(part) for part in found.version.split(".")[:2]) < LEAST_CUDA:
        least = ".".join(map(str, LEAST_CUDA))
        text += f": kernels need CUDA {least} or later; install a newer toolkit, or set ATTN_NVCC"
        return Check("nvcc", State.MISSING, text)
    return Check("nvcc", State.OK, text)


def _host_compiler() -> Check:
    """The one that nvcc takes, tried: nvcc preprocesses with it, and refuses versions."""
    what, named = "host compiler", os.environ.get("NVCC_CCBIN", "")
    program = shutil.which(named or "g++")
    if program is None:
        wrong = f"NVCC_CCBIN is {named}, which is no program" if named else "g++ is not on PATH"
        return Check(what, State.MISSING, f"{wrong}: install g++, or set NVCC_CCBIN to a compiler")
    version = _first_line(program, "--version")
    try:
        nvcc = find_nvcc().nvcc
    except ToolchainError:
        return Check(what, State.OK, f"{version} at {program} (not tried: there is no nvcc)")
    fault = _trial(nvcc)
    if fault:
        advice = "nvcc fails with it; set NVCC_CCBIN to a compiler that this nvcc takes"
        return Check(what, State.MISSING, f"{version} at {program}: {advice}: {fault}")
    return Check(what, State.OK, f"{version} at {program}")


def _trial(nvcc: Path) -> str:
    """What nvcc says of an empty kernel; "" when it compiles."""
    try:
        with tempfile.TemporaryDirectory(prefix="attn-codegen-doctor-") as folder:
            source = Path(folder, "nothing.cu")
            source.write_text(_UNIT)
            command = [str(nvcc), "-cubin", "-std=c++17", "-o", f"{folder}/out", str(source)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
            )
            return " ".join((done.stdout + done.stderr).split()) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _first_line(program: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
        )
        return done.stdout.splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return Path(program).name


def _driver_and_gpus(load: Callable[[], DriverLibrary] = DriverLibrary) -> list[Check]:
    try:
        library = load()
    except NoDriver as error:
        advice = "install the NVIDIA driver (in a container: run it with --gpus all)"
        return [
            Check("driver", State.MISSING, f"{error}: {advice}"),
            Check("GPU", State.MISSING, "none can be seen: install the driver first"),
        ]
    driver = Check("driver", State.OK, f"supports CUDA {library.version}")
    try:
        devices = library.devices()
    except NoDriver as error:
        advice = "nvidia-smi should list it; CUDA_VISIBLE_DEVICES may hide it"
        return [driver, Check("GPU", State.MISSING, f"{error}: {advice}")]
    return [driver, *(_gpu(*device) for device in enumerate(devices))]


def _gpu(ordinal: int, device: tuple[str, tuple[int, int]]) -> Check:
    name, capability = device
    text = f"{name}, compute capability {capability[0]}.{capability[1]}"
    if capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        text += f": kernels are written for {least} and later; use another GPU"
        return Check(f"GPU {ordinal}", State.MISSING, text)
    return Check(f"GPU {ordinal}", State.OK, text)


def _package(what: str, module: str) -> Check:
    """Installed, by what Python finds; importing it would need the driver."""
    try:
        found = util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return Check(what, State.MISSING, f"not installed: {INSTALL}")
    try:
        return Check(what, State.OK, metadata.version(what))
    except metadata.PackageNotFoundError:
        return Check(what, State.OK, "of unknown version")


def _cache() -> Check:
    what, folders = "cache folder", cache_folders()
    root = folders.root
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"attn-codegen")
        free = shutil.disk_usage(root).free
    except OSError as error:
        fault = error.strerror or str(error)
        advice = f"make room there, or set {VARIABLE} to a folder that can be written"
        return Check(what, State.MISSING, f"{root}: {fault}; {advice}")
    text = f"{root}, {free / 1e9:.1f} GB free"
    if free < LEAST_FREE:
        text += f": make room there, or set {VARIABLE} to another folder"
        return Check(what, State.MISSING, text)
    if folders.read_only:
        text += f" (a temporary one, since {folders.read_only[0]} cannot be written)"
    return Check(what, State.OK, text)


def _exported() -> Check | None:
    """The folder of $ATTN_KERNEL_DIR, where that is set."""
    what = "kernel folder"
    try:
        folder = kernel_folder.chosen_folder(None)
    except KernelFolderError as error:
        advice = f"or unset {kernel_folder.VARIABLE}"
        return Check(what, State.MISSING, f"{error}; {advice}")
    if folder is None:
        return None
    targets = sorted({target for _, target in folder.kernels})
    count = counted(len(folder.kernels), "kernel")
    text = f"{folder.path}, {count} for {', '.join(targets) or 'no device'}"
    return Check(what, State.OK, text)
