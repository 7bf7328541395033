# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA driver's own library, asked without PyCUDA and cuda-bindings: for the doctor, who must
tell a missing driver from a missing package."""

from __future__ import annotations

import ctypes
from typing import Final

LIBRARY: Final = "libcuda.so.1"
_MAJOR: Final = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_MINOR: Final = 76
_NAME_BYTES: Final = 256


class NoDriver(Exception):
    """The library cannot be loaded, or a call of it failed."""


class DriverLibrary:
    """libcuda, loaded. Raises NoDriver where there is none."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise NoDriver(f"{library} cannot be loaded ({error})") from error
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.version: Final = f"{version.value // 1000}.{version.value % 1000 // 10}"

    def devices(self) -> list[tuple[str, tuple[int, int]]]:
        """Name and compute capability of each GPU, at least one. Raises NoDriver."""
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise NoDriver("the driver counts 0 devices")
        return [self._device(ordinal) for ordinal in range(count.value)]

    def _device(self, ordinal: int) -> tuple[str, tuple[int, int]]:
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        found = [ctypes.c_int(), ctypes.c_int()]
        for value, attribute in zip(found, (_MAJOR, _MINOR), strict=True):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        return name.value.decode(errors="replace"), (found[0].value, found[1].value)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise NoDriver(f"{name} failed with CUDA error {status}{self._words(status)}")

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self._cuda.cuGetErrorString(status, ctypes.byref(text)) or not text.value:
            return ""
        return f" ({text.value.decode(errors='replace')})"
