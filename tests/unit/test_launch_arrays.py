# SPDX-License-Identifier: Apache-2.0
"""Arrays of any library as plain data. The arrays here lie in host memory: only what they say of
themselves is read."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_runtime import arrays, dlpack
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.arrays import adapter_of
from attn_runtime.errors import ArgumentError


class CudaDlpack:
    """An exporter that says its memory is that of GPU 0."""

    def __init__(self, array: Any, device: tuple[int, int] = (2, 0)) -> None:
        self.array = array
        self.device = device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


class CudaInterface:
    """An array with a CUDA array interface."""

    def __init__(self, array: Any, **facts: Any) -> None:
        pointer, _ = array.__array_interface__["data"]
        self.facts = {
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "data": (pointer, False),
            "version": 3,
            **facts,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.facts


class GPUArray:
    """The attributes of pycuda.gpuarray.GPUArray that are read."""

    def __init__(self, array: Any) -> None:
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.gpudata = array.__array_interface__["data"][0] if array.size else None


GPUArray.__module__ = "pycuda.gpuarray"


def view_of(array: Any, stream: int = 5) -> tuple[ArrayView, int]:
    adapter = adapter_of(array, "q")
    key, address, _ = adapter.read(array, "q", stream)
    return adapter.describe(key, "q"), address


def address_of(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


DTYPES = {"f2": "f16", "f4": "f32", "i4": "i32", "i8": "i64", "u1": "u8", "u2": "u16", "?": "bool"}


@st.composite
def strided(draw: st.DrawFn) -> Any:
    """A numpy array of up to four axes, sliced and transposed."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    array = np.zeros(shape, draw(st.sampled_from(list(DTYPES))))
    slices = tuple(slice(draw(st.integers(0, n - 1)), n, draw(st.integers(1, 2))) for n in shape)
    return array[slices].transpose(draw(st.permutations(range(len(shape)))))


def canonical(view: ArrayView) -> list[tuple[int, int]]:
    """Extents with strides; the stride of an axis of one element means nothing."""
    return [(n, step if n > 1 else 0) for n, step in zip(view.shape, view.strides, strict=True)]


@given(strided())
def test_every_way_to_read_an_array_gives_the_same_view(array: Any) -> None:
    steps = tuple(step // array.itemsize for step in array.strides)
    word = DTYPES["?" if array.dtype == bool else array.dtype.str[1:]]
    expected = ArrayView(array.shape, steps, word, None)
    for wrapped in (CudaDlpack(array), CudaInterface(array), GPUArray(array)):
        view, address = view_of(wrapped)
        assert canonical(view) == canonical(expected)
        assert view.dtype == word
        assert address == address_of(array)


def test_an_interface_without_strides_is_dense() -> None:
    view, _ = view_of(CudaInterface(np.zeros((2, 3, 4), "f2"), strides=None))
    assert view.strides == dense_strides((2, 3, 4)) == (12, 4, 1)


def test_a_stride_of_half_an_element_is_refused() -> None:
    array = CudaInterface(np.zeros((2, 4), "f2"), strides=(7, 2))
    with pytest.raises(ArgumentError, match=r"q has strides of \[7, 2\] bytes, no whole elements"):
        view_of(array)


def test_an_empty_array_has_address_0() -> None:
    assert view_of(GPUArray(np.zeros((0, 4), "f2")))[1] == 0


def test_dlpack_says_the_gpu_and_others_leave_it_to_the_driver() -> None:
    array = np.zeros(4, "f2")
    assert view_of(CudaDlpack(array))[0].ordinal == 0
    assert view_of(CudaInterface(array))[0].ordinal is None
    assert not adapter_of(CudaInterface(array), "q").knows_device
    assert adapter_of(CudaDlpack(array), "q").knows_device


def test_dlpack_is_exported_for_the_stream_of_the_call_and_never_for_0() -> None:
    array = CudaDlpack(np.zeros(4, "f2"))
    for stream in (77, 0):
        adapter_of(array, "q").read(array, "q", stream)
    assert array.streams == [77, 1]


def test_what_is_not_on_a_gpu_is_refused_by_its_name() -> None:
    elsewhere = [
        (np.zeros(4, "f2"), "in host memory"),
        (CudaDlpack(np.zeros(4, "f2"), device=(3, 0)), "in host memory"),
        (CudaDlpack(np.zeros(4, "f2"), device=(10, 0)), "on DLPack device type 10"),
    ]
    for array, where in elsewhere:
        with pytest.raises(ArgumentError, match=f"k is {where}: move it to an NVIDIA GPU"):
            adapter_of(array, "k").read(array, "k", 1)


def test_what_is_no_array_is_refused_with_what_is_taken() -> None:
    with pytest.raises(ArgumentError, match="q is a list: give a torch tensor") as error:
        adapter_of([1, 2], "q")
    assert error.value.argument == "q"


def test_a_capsule_is_consumed_and_its_memory_given_back_with_the_last_reference() -> None:
    array = np.zeros(4, "f2")
    before = sys.getrefcount(array)
    capsule = array.__dlpack__()
    assert sys.getrefcount(array) == before + 1
    tensor = dlpack.consume(capsule, "q")
    assert "used_dltensor" in repr(capsule)
    del capsule
    gc.collect()
    assert sys.getrefcount(array) == before + 1, "the tensor keeps the memory"
    del tensor
    assert sys.getrefcount(array) == before


def test_a_used_capsule_is_refused() -> None:
    capsule = np.zeros(4, "f2").__dlpack__()
    dlpack.consume(capsule, "q")
    with pytest.raises(ArgumentError, match="q exports a capsule named b'used_dltensor'"):
        dlpack.consume(capsule, "q")


def test_a_versioned_capsule_is_read_with_its_read_only_flag() -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    array.flags.writeable = False
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
    except (TypeError, BufferError):
        pytest.skip("needs numpy 2.1 or later: this one exports no versioned capsule")
    tensor = dlpack.consume(capsule, "q")
    assert (tensor.shape, tensor.strides, tensor.dtype) == ((2, 3), (3, 1), "f32")
    assert tensor.readonly
    assert tensor.pointer == address_of(array)


def test_the_owner_of_a_reading_keeps_the_memory_of_an_exporter_that_is_gone() -> None:
    array = np.zeros(4, "f2")
    before = sys.getrefcount(array)
    wrapped = CudaDlpack(array)
    _, _, owner = adapter_of(wrapped, "q").read(wrapped, "q", 1)
    del wrapped
    gc.collect()
    assert sys.getrefcount(array) == before + 1
    del owner
    assert sys.getrefcount(array) == before


def test_a_type_without_an_interface_for_its_elements_falls_back_to_dlpack() -> None:
    class Both(CudaDlpack):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            raise AttributeError("not for bfloat16")

    view, _ = view_of(Both(np.zeros((2, 8), "f2")))
    assert (view.shape, view.dtype, view.ordinal) == ((2, 8), "f16", 0)


def test_an_interface_that_stands_on_the_instance_is_found() -> None:
    class Plain:
        pass

    array = Plain()
    array.__cuda_array_interface__ = CudaInterface(np.zeros((2, 8), "f2")).facts  # type: ignore
    assert view_of(array)[0].shape == (2, 8)


def test_an_interface_names_its_stream() -> None:
    array = CudaInterface(np.zeros(4, "f2"), stream=33)
    assert adapter_of(array, "q").current_stream(array) == 33
    assert adapter_of(array, "q").current_stream(CudaInterface(np.zeros(4, "f2"))) == 0


def test_all_arguments_are_read_in_order_with_none_for_a_missing_one() -> None:
    array = np.zeros((2, 8), "f2")
    mixture = (GPUArray(array), None, CudaInterface(array), CudaDlpack(array), GPUArray(array))
    names = ("q", "k", "v", "out", "lse")
    for first in (mixture, (mixture[2], *mixture[1:]), (mixture[3], *mixture[1:])):
        keys, addresses, _ = adapter_of(first[0], "q").read_all(first, names, 1)
        assert [key is None for key in keys] == [False, True, False, False, False]
        assert addresses == [address_of(array), 0, *[address_of(array)] * 3]


def test_arrays_of_one_library_are_read_as_one_by_one() -> None:
    array = np.zeros((2, 8), "f2")
    given_arrays = (GPUArray(array), None, GPUArray(array[1:]))
    quick = arrays.PYCUDA.read_all(given_arrays, ("q", "k", "v"), 0)
    slow = arrays.Adapter.read_all(arrays.PYCUDA, given_arrays, ("q", "k", "v"), 0)
    assert quick[:2] == slow[:2]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs torch: it is not installed")


@pytest.mark.parametrize(
    ("name", "word"),
    [("float16", "f16"), ("bfloat16", "bf16"), ("int32", "i32"), ("bool", "bool")],
)
def test_torch_tensors_are_read_without_an_interface(torch: Any, name: str, word: str) -> None:
    tensor = torch.zeros(4, 6, 8, dtype=getattr(torch, name)).transpose(0, 1)
    view, address = view_of(tensor)
    assert (view.shape, view.strides, view.dtype) == ((6, 4, 8), (8, 48, 1), word)
    assert view.ordinal == -1, "host memory"
    assert address == tensor.data_ptr()


def test_subclasses_of_tensors_are_tensors(torch: Any) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 8))
    plain = parameter.detach()
    assert view_of(parameter) == view_of(plain)
    for pair in ((parameter, plain), (plain, parameter)):
        keys, addresses, _ = adapter_of(pair[0], "q").read_all(pair, ("q", "k"), 0)
        assert keys[0] == keys[1]
        assert addresses == [plain.data_ptr()] * 2
