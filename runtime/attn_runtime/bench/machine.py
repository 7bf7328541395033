# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on: the device, its clocks, and the versions of everything."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import shutil
import subprocess
from typing import Final

import attn_codegen
from attn_runtime import driver
from attn_runtime.driver import Device
from attn_runtime.errors import ToolchainError
from attn_runtime.toolchain import find_nvcc

Facts = dict[str, str]

_CLOCKS: Final = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)


def facts_of(device: Device) -> Facts:
    """Name and version of what takes part, in the order in which they are printed."""
    found = {"date": datetime.date.today().isoformat(), "device": device.name}
    found |= {"driver": _driver_version(device.ordinal), "nvcc": nvcc_version()}
    found["attn-codegen"] = attn_codegen.__version__
    if importlib.util.find_spec("torch") is not None:
        import torch

        found["torch"] = str(torch.__version__)
        cudnn = torch.backends.cudnn.version()
        found["cuDNN"] = str(cudnn) if cudnn else "none"
    for module, package in (("flash_attn_interface", "flash_attn_3"), ("flashinfer",) * 2):
        if importlib.util.find_spec(module) is not None:
            found[module] = _package_version(package)
    return found


def nvcc_version() -> str:
    """Of the compiler that the runtime would use."""
    try:
        return find_nvcc().version
    except ToolchainError:
        return "none"


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _driver_version(ordinal: int) -> str:
    answer = ask_nvidia_smi(ordinal, "driver_version")
    if answer is not None:
        return answer[0]
    number = int(driver.call("cuDriverGetVersion", driver.bindings().cuDriverGetVersion()))
    return f"for CUDA {number // 1000}.{number % 1000 // 10}"


def clocks(ordinal: int) -> str:
    """Clocks, power, temperature and load at this moment, on one line. A load before anything was
    run is somebody else's, and spoils every figure."""
    answer = ask_nvidia_smi(ordinal, ",".join(_CLOCKS))
    if answer is None:
        return "unknown (nvidia-smi does not answer)"
    sm, most, memory, power, limit, temperature, load = answer
    return f"SM {sm} of {most}, memory {memory}, {power} of {limit}, {temperature} C, load {load}"


def ask_nvidia_smi(ordinal: int, query: str) -> list[str] | None:
    """The answers to a query; None where there are none. CUDA's ordinals may differ from those of
    nvidia-smi, so the GPU is named by its bus id."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    bus = driver.pycuda().Device(ordinal).pci_bus_id()
    command = [program, f"--id={bus}", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [word.strip() for word in done.stdout.splitlines()[0].split(",")]
