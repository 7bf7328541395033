# SPDX-License-Identifier: Apache-2.0
"""Reads a DLPack capsule, through ctypes: the exchange format of arrays that needs no library.

The structs are those of dlpack.h, both the unversioned and the versioned (1.0) one.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Any, Final, NamedTuple

from attn_runtime.array_view import dense_strides
from attn_runtime.errors import ArgumentError

CUDA: Final = 2
CUDA_MANAGED: Final = 13
HOST: Final = (1, 3)  # pinned, too
READ_ONLY: Final = 1

_KINDS: Final = {0: "i", 1: "u", 2: "f", 4: "bf", 5: "c", 6: "bool"}


class _Device(ctypes.Structure):
    _fields_ = [("kind", c_int32), ("ordinal", c_int32)]


class _Dtype(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _Dtype),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


_DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # some exporters expect the GIL


class _Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    ]


_MANAGED: Final[dict[bytes, type[ctypes.Structure]]] = {
    b"dltensor": _Managed,
    b"dltensor_versioned": _ManagedVersioned,
}

_api = ctypes.pythonapi
_get_name = ctypes.PYFUNCTYPE(c_char_p, ctypes.py_object)(("PyCapsule_GetName", _api))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", _api))


class Tensor(NamedTuple):
    """What a capsule says. Strides in elements; `owner` keeps the memory until it is dropped."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    ordinal: int
    readonly: bool
    owner: Owner


class Owner:
    """The tensor behind a consumed capsule; the exporter's deleter runs with the last reference."""

    __slots__ = ("_address", "_deleter")

    def __init__(self, address: int, deleter: int | None) -> None:
        self._address = address
        self._deleter = deleter

    def __del__(self) -> None:
        if self._deleter:
            _DELETER(self._deleter)(self._address)


def read(array: Any, argument: str, stream: int) -> Tensor:
    """Export an array for a stream and consume the capsule.

    The exporter makes the stream wait for what still fills the array. `stream` is never 0, which
    the protocol forbids: streams.LEGACY_DEFAULT is the default one.
    """
    kind, _ = array.__dlpack_device__()
    if kind not in (CUDA, CUDA_MANAGED):
        where = "in host memory" if kind in HOST else f"on DLPack device type {int(kind)}"
        raise ArgumentError(argument, f"{argument} is {where}: move it to an NVIDIA GPU")
    return consume(array.__dlpack__(stream=stream), argument)


# The names outlive the capsules that point to them.
_USED: Final = {name: b"used_" + name for name in _MANAGED}


def consume(capsule: Any, argument: str) -> Tensor:
    """Take the tensor out of a capsule, which then counts as used."""
    name = _get_name(capsule)
    layout = _MANAGED.get(name)
    if layout is None:
        raise ArgumentError(
            argument,
            f"{argument} exports a capsule named {name!r}: a fresh DLPack capsule is named "
            "dltensor or dltensor_versioned",
        )
    address = _get_pointer(capsule, name)
    managed: Any = ctypes.cast(address, POINTER(layout)).contents
    if layout is _ManagedVersioned and managed.major != 1:
        raise ArgumentError(
            argument, f"{argument} exports DLPack {managed.major}.{managed.minor}: 1.x is read"
        )
    _set_name(capsule, _USED[name])
    owner = Owner(address, managed.deleter)
    tensor = managed.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    return Tensor(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else dense_strides(shape),
        dtype=_dtype_word(tensor.dtype),
        ordinal=tensor.device.ordinal,
        readonly=layout is _ManagedVersioned and bool(managed.flags & READ_ONLY),
        owner=owner,
    )


def _dtype_word(dtype: Any) -> str:
    kind = _KINDS.get(dtype.code, f"dlpack type {dtype.code} of bits ")
    word = kind if kind == "bool" else f"{kind}{dtype.bits}"
    return word if dtype.lanes == 1 else f"{word}x{dtype.lanes}"
