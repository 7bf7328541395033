# SPDX-License-Identifier: Apache-2.0
"""The runtime's errors: each message says what, got, allowed, next, and none loses its cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attn_codegen.errors import CodegenError


class AttnError(CodegenError):
    """Base of the runtime's errors."""


class ToolchainError(AttnError):
    """nvcc is needed and is missing, or does not work."""


class CompileError(AttnError):
    """nvcc refused a unit: the message holds the command, the log and where the source is kept."""

    def __init__(
        self, name: str, command: Sequence[str], log: str, source: Path, hint: str = ""
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.source = source
        lines = [f"{name} does not compile{': ' + hint if hint else ''}"]
        lines += [f"command: {' '.join(self.command)}", f"source:  {source}", "log:"]
        super().__init__("\n".join([*lines, log.rstrip() or "(empty)"]))


class KernelFolderError(AttnError):
    """A folder of exported kernels lacks what is asked of it, or is damaged."""


class DriverError(AttnError):
    """PyCUDA, cuda-bindings, the NVIDIA driver or a GPU is missing, or a driver call failed."""


class DeviceError(AttnError):
    """The device cannot run the kernel that was asked for."""


class ContextParallelError(AttnError):
    """The ranks of a group did not complete an exchange together; its communicator is gone."""


class ArgumentError(AttnError, ValueError):
    """An argument of a call is wrong; `argument` names it. Nothing was launched."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument
