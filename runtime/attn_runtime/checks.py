# SPDX-License-Identifier: Apache-2.0
"""Checks of single arguments; each raises ArgumentError that names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Final

from attn_codegen.config import Dtype, KvDtype
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.errors import ArgumentError
from attn_runtime.problem import INT_MAX

ROW_ELEMENTS: Final = 8
"""Kernels move 16 bytes at a time, and elements have 2: strides are multiples of 8 elements."""
ROW_CODES: Final = 16
"""The same of a quantised cache, whose arrays are of bytes."""

# The bits of bf16 where a library has no such type.
_ELEMENT_WORDS: Final = {Dtype.F16: ("f16",), Dtype.BF16: ("bf16", "u16")}
_CODE_WORDS: Final = {
    KvDtype.INT8: ("u8",),
    KvDtype.INT4: ("u8",),
    KvDtype.E4M3: ("u8", "float8_e4m3fn"),
}

Views = Mapping[str, ArrayView | None]
"""The array arguments of a call by name; None where one was left out."""

Words = tuple[str, ...]
Extents = tuple[int | None, ...]
"""What a shape must be; None where any extent will do."""


def given(views: Views, name: str) -> ArrayView:
    """An argument that a call cannot do without."""
    view = views.get(name)
    if view is None:
        raise ArgumentError(name, f"{name} is missing: give it, as an array on the GPU")
    return view


def stride(view: ArrayView, axis: int) -> int:
    """The stride of an axis, 0 where it has one element at most: then any value is right."""
    return view.strides[axis] if view.shape[axis] > 1 else 0


def is_step(view: ArrayView, axis: int, step: int) -> bool:
    """True when the elements along an axis are `step` apart, or there is one at most."""
    return view.shape[axis] <= 1 or view.strides[axis] == step


def row_stride(name: str, view: ArrayView, axis: int, multiple: int = ROW_ELEMENTS) -> int:
    """The stride of an axis of rows, which 16-byte moves must be able to follow."""
    step = stride(view, axis)
    if step % multiple:
        raise ArgumentError(
            name,
            f"{name} has strides {list(view.strides)}: all but the last must be multiples of "
            f"{multiple} elements, so that every row is aligned to 16 bytes; copy it, or pad rows",
        )
    return step


def pair_stride(name: str, view: ArrayView, axis: int) -> int:
    """The stride of an axis of (scale, zero) pairs, each read by one load of 4 bytes."""
    step = stride(view, axis)
    if step % 2:
        raise ArgumentError(
            name,
            f"{name} has strides {list(view.strides)}: all but the last must be even, so that "
            "every pair is aligned to 4 bytes; copy it",
        )
    return step


def need_shape(name: str, view: ArrayView, words: Words, expected: Extents) -> None:
    """Refuse another rank or extent; `words` name the axes."""
    fits = len(view.shape) == len(expected) and all(
        want is None or got == want for got, want in zip(view.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ArgumentError(
            name,
            f"{name} has shape {list(view.shape)}: it must be [{', '.join(words)}] = [{wanted}]",
        )


def need_dtype(name: str, view: ArrayView, allowed: Words) -> None:
    """Refuse another element type."""
    if view.dtype not in allowed:
        raise ArgumentError(
            name, f"{name} has dtype {view.dtype}: it must be {' or '.join(allowed)}; convert it"
        )


def need_elements(name: str, view: ArrayView, dtype: Dtype) -> None:
    """Refuse another element type than that of the kernel."""
    allowed = _ELEMENT_WORDS[dtype]
    if view.dtype not in allowed:
        bits = " (or u16 that holds its bits)" if len(allowed) > 1 else ""
        raise ArgumentError(
            name,
            f"{name} has dtype {view.dtype}: this Attention takes {allowed[0]}{bits}; convert it, "
            "or build an Attention of that dtype",
        )


def need_rows(name: str, view: ArrayView, dtype: Dtype) -> None:
    """Refuse another element type, and rows whose elements are apart."""
    need_elements(name, view, dtype)
    _need_back_to_back(name, view)


def need_codes(name: str, view: ArrayView, kv_dtype: KvDtype) -> None:
    """Refuse what is not bytes of codes, and rows whose bytes are apart."""
    allowed = _CODE_WORDS[kv_dtype]
    if view.dtype not in allowed:
        raise ArgumentError(
            name,
            f"{name} has dtype {view.dtype}: an {kv_dtype} cache is an array of "
            f"{' or '.join(allowed)}; view it as that",
        )
    _need_back_to_back(name, view)


def _need_back_to_back(name: str, view: ArrayView) -> None:
    if not is_step(view, len(view.shape) - 1, 1):
        raise ArgumentError(
            name,
            f"{name} has strides {list(view.strides)}: the elements of a row must lie back to back "
            "(last stride 1); copy it",
        )


def need_dense(name: str, view: ArrayView, what: str) -> None:
    """Refuse an array with gaps, or of another order than C."""
    dense = dense_strides(view.shape)
    axes = zip(view.strides, dense, view.shape, strict=True)
    if view.size and any(got != want for got, want, extent in axes if extent > 1):
        raise ArgumentError(
            name,
            f"{name} has strides {list(view.strides)}: {what} must lie back to back "
            f"(strides {list(dense)}); copy it to a contiguous array",
        )


def need_ints(name: str, view: ArrayView, words: Words, expected: Extents) -> None:
    """Refuse what is not a dense array of 32-bit integers."""
    need_shape(name, view, words, expected)
    need_dtype(name, view, ("i32",))
    need_dense(name, view, f"[{', '.join(words)}]")


def need_int(argument: str, value: Any, *, least: int = 0, what: str = "") -> int:
    """The value as an int that the 32-bit fields of AttentionParams can hold; `what` it is, where
    that is not the argument itself."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= INT_MAX:
        raise ArgumentError(
            argument,
            f"{what or argument} is {value!r}: it must be a whole number from {least} to {INT_MAX}",
        )
    return int(value)
