# SPDX-License-Identifier: Apache-2.0
"""Arrays of any library, read without importing it: torch, PyCUDA, CUDA array interface, DLPack.

Each kind is an adapter. `read` is what a repeated call pays for: a key that holds all that must be
checked, and the address. `describe` turns a key into a view, once per key.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from attn_runtime import dlpack, driver, streams
from attn_runtime.array_view import (
    NUMPY_NAMES,
    TORCH_NAMES,
    ArrayView,
    dense_strides,
    in_elements,
    word_of_code,
    word_of_name,
)
from attn_runtime.errors import ArgumentError

Key = tuple[Any, ...]
Reading = tuple[Key, int, object]
"""(key, address, owner): `owner` must live until the launch is enqueued."""
Readings = tuple[list[Key | None], list[int], list[object]]
"""Keys and addresses of all arguments, None and 0 for a missing one, and the owners."""


class Adapter:
    """How the arrays of one library are read and made."""

    knows_device = True
    """A view says which GPU its array is on; otherwise the driver is asked by the address."""

    def read(self, array: Any, argument: str, stream: int) -> Reading:
        """What a call needs of an array that it reads on `stream`."""
        raise NotImplementedError

    def read_all(self, arrays: Sequence[Any], arguments: Sequence[str], stream: int) -> Readings:
        """`read` for all arguments of a call, None for a missing one. The first is of this library;
        where all are, a subclass may take a shorter way."""
        keys: list[Key | None] = []
        addresses: list[int] = []
        owners: list[object] = []
        for array, argument in zip(arrays, arguments, strict=True):
            if array is None:
                keys.append(None)
                addresses.append(0)
            else:
                key, address, owner = adapter_of(array, argument).read(array, argument, stream)
                keys.append(key)
                addresses.append(address)
                owners.append(owner)
        return keys, addresses, owners

    def describe(self, key: Key, argument: str) -> ArrayView:
        """The view that a key stands for; `argument` is its name in errors."""
        raise NotImplementedError

    def current_stream(self, array: Any) -> int:
        """The stream that the library would use now."""
        raise NotImplementedError

    def empty(
        self, like: Any, context: driver.Context, stream: int, shape: tuple[int, ...], dtype: str
    ) -> tuple[Any, int]:
        """A new array beside `like`, for use on `stream`, and its address."""
        array = driver.gpu_array(context, shape, NUMPY_NAMES[dtype])
        return array, int(array.gpudata) if array.gpudata is not None else 0


class TorchAdapter(Adapter):
    """torch.Tensor and its subclasses."""

    def __init__(self) -> None:
        self._torch: Any = sys.modules["torch"]
        raw = getattr(self._torch._C, "_cuda_getCurrentRawStream", None)
        self._raw_stream = raw or self._slow_raw_stream

    def _slow_raw_stream(self, ordinal: int) -> int:
        return int(self._torch.cuda.current_stream(ordinal).cuda_stream)

    def read(self, array: Any, argument: str, stream: int) -> Reading:
        key = (array.shape, array.stride(), array.dtype, array.get_device())
        return key, array.data_ptr(), None

    def read_all(self, arrays: Sequence[Any], arguments: Sequence[str], stream: int) -> Readings:
        kind = type(arrays[0])
        keys: list[Key | None] = [None] * len(arrays)
        addresses = [0] * len(arrays)
        for at, array in enumerate(arrays):
            if array is None:
                continue
            if type(array) is not kind:
                return super().read_all(arrays, arguments, stream)
            keys[at] = (array.shape, array.stride(), array.dtype, array.get_device())
            addresses[at] = array.data_ptr()
        return keys, addresses, []

    def describe(self, key: Key, argument: str) -> ArrayView:
        shape, strides, dtype, ordinal = key
        name = str(dtype).removeprefix("torch.")
        return ArrayView(tuple(shape), tuple(strides), word_of_name(name), ordinal)

    def current_stream(self, array: Any) -> int:
        ordinal = array.get_device()
        return int(self._raw_stream(ordinal)) if ordinal >= 0 else 0

    def empty(
        self, like: Any, context: driver.Context, stream: int, shape: tuple[int, ...], dtype: str
    ) -> tuple[Any, int]:
        torch, device = self._torch, like.device
        torch_dtype = getattr(torch, TORCH_NAMES[dtype])
        if stream == self._raw_stream(device.index):
            array = torch.empty(shape, dtype=torch_dtype, device=device)
        else:  # torch's allocator must know which stream uses the memory
            with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device)):
                array = torch.empty(shape, dtype=torch_dtype, device=device)
        return array, array.data_ptr()


class PycudaAdapter(Adapter):
    """pycuda.gpuarray.GPUArray."""

    knows_device = False

    def read(self, array: Any, argument: str, stream: int) -> Reading:
        memory = array.gpudata
        key = (array.shape, array.strides, array.dtype)
        return key, int(memory) if memory is not None else 0, None

    def read_all(self, arrays: Sequence[Any], arguments: Sequence[str], stream: int) -> Readings:
        kind = type(arrays[0])
        keys: list[Key | None] = [None] * len(arrays)
        addresses = [0] * len(arrays)
        for at, array in enumerate(arrays):
            if array is None:
                continue
            if type(array) is not kind:
                return super().read_all(arrays, arguments, stream)
            memory = array.gpudata
            keys[at] = (array.shape, array.strides, array.dtype)
            addresses[at] = int(memory) if memory is not None else 0
        return keys, addresses, []

    def describe(self, key: Key, argument: str) -> ArrayView:
        shape, strides, dtype = key
        elements = in_elements(strides, dtype.itemsize, argument)
        return ArrayView(shape, elements, word_of_name(str(dtype.name)), None)

    def current_stream(self, array: Any) -> int:
        return 0


class InterfaceAdapter(Adapter):
    """__cuda_array_interface__, and DLPack for what it cannot say (bf16)."""

    knows_device = False

    def read(self, array: Any, argument: str, stream: int) -> Reading:
        facts = _interface(array)
        if facts is None:
            if not hasattr(array, "__dlpack__"):
                raise _not_an_array(argument, array)
            return DLPACK.read(array, argument, stream)
        pointer, readonly = facts["data"]
        key = (tuple(facts["shape"]), facts.get("strides"), facts["typestr"], bool(readonly))
        return key, int(pointer or 0), None

    def describe(self, key: Key, argument: str) -> ArrayView:
        if len(key) == 5:
            return DLPACK.describe(key, argument)
        shape, strides, typestr, readonly = key
        size = int(typestr[2:])
        word = "bf16" if typestr[1:] == "V2" else word_of_code(typestr[1], size)
        dense = dense_strides(shape)
        elements = dense if strides is None else in_elements(strides, size, argument)
        return ArrayView(shape, elements, word, None, readonly)

    def current_stream(self, array: Any) -> int:
        facts = _interface(array)
        return DLPACK.current_stream(array) if facts is None else int(facts.get("stream") or 0)


class DlpackAdapter(Adapter):
    """Anything with __dlpack__ and __dlpack_device__."""

    def read(self, array: Any, argument: str, stream: int) -> Reading:
        tensor = dlpack.read(array, argument, stream or streams.LEGACY_DEFAULT)
        return tensor[1:6], tensor.pointer, tensor.owner

    def describe(self, key: Key, argument: str) -> ArrayView:
        return ArrayView(*key)

    def current_stream(self, array: Any) -> int:
        return streams.LEGACY_DEFAULT


DLPACK: Final = DlpackAdapter()
PYCUDA: Final = PycudaAdapter()
INTERFACE: Final = InterfaceAdapter()

_adapters: dict[type, Adapter] = {}


def adapter_of(array: Any, argument: str) -> Adapter:
    """The adapter of an array's type. Raises ArgumentError for what is no array of a GPU."""
    kind = type(array)
    found = _adapters.get(kind)
    if found is None:
        found = _adapters[kind] = _choose(kind, array, argument)
    return found


def _choose(kind: type, array: Any, argument: str) -> Adapter:
    names = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
    if ("torch", "Tensor") in names:
        return TorchAdapter()
    if ("pycuda", "GPUArray") in names:
        return PYCUDA
    if hasattr(array, "__cuda_array_interface__"):
        return INTERFACE
    if hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
        return DLPACK
    raise _not_an_array(argument, array)


def _interface(array: Any) -> dict[str, Any] | None:
    """The CUDA array interface; None where the array has none, or none for its type."""
    try:
        facts: dict[str, Any] = array.__cuda_array_interface__
    except (AttributeError, TypeError):
        return None
    return facts


def _not_an_array(argument: str, array: Any) -> ArgumentError:
    return ArgumentError(
        argument,
        f"{argument} is a {type(array).__name__}: give a torch tensor, a PyCUDA GPUArray or an "
        "array with __cuda_array_interface__ or __dlpack__, in the memory of a GPU",
    )
