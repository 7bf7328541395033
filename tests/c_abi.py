# SPDX-License-Identifier: Apache-2.0
"""attn_c.h through ctypes: its structs from the one declaration, its functions with their types."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from attn_codegen import params

ANY_DEVICE = -1
F16, BF16 = 0, 1
PREFILL, DECODE, WRITE = 0, 1, 2
INT8 = 1
SCALED, COMPLETE = 0, 1
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, WORKSPACE_TOO_SMALL, NO_DEVICE, NO_KERNEL_IMAGE = range(6)

_SCALARS = {
    params.POINTER: ctypes.c_void_p,
    "int64_t": ctypes.c_int64,
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
}
_INFO = (
    "mode dtype kv_type cache causal size_per_head size_per_head_v first_capability "
    "last_capability threads warps shared_bytes cta_q cta_s registers local_bytes "
    "static_shared_bytes ctas_per_sm sm_count"
)


@cache
def struct(name: str) -> type[ctypes.Structure]:
    """A struct of `attn_codegen.params` as C lays it out."""
    fields = [
        (field.name, _SCALARS.get(field.kind) or struct(field.kind))
        for field in params.STRUCTS_BY_NAME[name].fields
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Params(ctypes.Structure):
    """attn_params_t; the members that C++ has too are those of the anonymous one."""

    _anonymous_ = ("call",)
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("call", struct("AttentionParams")),
    )

    def __init__(self, **members: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(Params))
        for name, value in members.items():
            setattr(self, name, value)


class Info(ctypes.Structure):
    """attn_kernel_info_t."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_bool if name == "causal" else ctypes.c_int) for name in _INFO.split()),
    )

    def __init__(self) -> None:
        super().__init__(struct_size=ctypes.sizeof(Info))


class Library:
    """A shared build."""

    def __init__(self, path: Path, prefix: str = "attn") -> None:
        self._library = ctypes.CDLL(str(path))
        self._prefix = prefix
        self._function("last_error").restype = ctypes.c_char_p
        self._function("last_error_field").restype = ctypes.c_char_p
        self._function("status_string").restype = ctypes.c_char_p
        self._function("version").restype = ctypes.c_char_p
        for name in ("prefill", "decode"):
            self._function(name).argtypes = (
                ctypes.POINTER(Params),
                ctypes.c_void_p,
                ctypes.c_size_t,
            )

    def kernels(self) -> list[Info]:
        """Every linked kernel, as compiled."""
        infos = [Info() for _ in range(self._function("kernel_count")())]
        for index, info in enumerate(infos):
            assert self.kernel_info(index, ANY_DEVICE, info) == SUCCESS, self.last_error()
        return infos

    def kernel_info(self, index: int, device: int, info: Info | None) -> int:
        """attn_kernel_info."""
        return self._call("kernel_info", index, device, info and ctypes.byref(info))

    def prepare(self, device: int) -> int:
        """attn_prepare."""
        return self._call("prepare", device)

    def find(self, given: Params | None, device: int = ANY_DEVICE) -> tuple[int, int]:
        """attn_find: the status and the kernel."""
        kernel = ctypes.c_int(-1)
        status = self._call("find", given and ctypes.byref(given), device, ctypes.byref(kernel))
        return status, kernel.value

    def workspace_size(self, given: Params) -> tuple[int, int]:
        """attn_workspace_size: the status and the bytes."""
        size = ctypes.c_size_t(0)
        return self._call("workspace_size", ctypes.byref(given), ctypes.byref(size)), size.value

    def parts(self, given: Params, workspace: int) -> tuple[int, int, int]:
        """attn_parts: the status, the first address and the floats of each rank."""
        first, floats = ctypes.c_void_p(0), ctypes.c_size_t(0)
        status = self._call(
            *("parts", ctypes.byref(given), ctypes.c_void_p(workspace)),
            *(ctypes.byref(first), ctypes.byref(floats)),
        )
        return status, first.value or 0, floats.value

    def counter_count(self, given: Params) -> tuple[int, int]:
        """attn_counter_count: the status and the ints."""
        count = ctypes.c_int(-1)
        return self._call("counter_count", ctypes.byref(given), ctypes.byref(count)), count.value

    def decode(self, given: Params, workspace: int | None = None, size: int = 0) -> int:
        """attn_decode."""
        return self._call("decode", ctypes.byref(given), workspace, size)

    def write(self, given: Params) -> int:
        """attn_write."""
        return self._call("write", ctypes.byref(given))

    def prefill(self, given: Params, workspace: int | None = None, size: int = 0) -> int:
        """attn_prefill."""
        return self._call("prefill", ctypes.byref(given), workspace, size)

    def version(self) -> str:
        """attn_version."""
        return str(self._function("version")().decode())

    def status_string(self, status: int) -> str:
        """attn_status_string."""
        return str(self._function("status_string")(status).decode())

    def last_error(self) -> str:
        """attn_last_error."""
        return str(self._function("last_error")().decode())

    def last_error_field(self) -> str:
        """attn_last_error_field."""
        return str(self._function("last_error_field")().decode())

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"{self._prefix}_{name}")

    def _call(self, name: str, *arguments: Any) -> int:
        return int(self._function(name)(*arguments))
