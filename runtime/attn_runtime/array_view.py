# SPDX-License-Identifier: Apache-2.0
"""An array as plain data, whatever library it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attn_runtime.errors import ArgumentError

TORCH_NAMES: Final = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "u8": "uint8",
    "u16": "uint16",
}
NUMPY_NAMES: Final = TORCH_NAMES | {"bf16": "uint16"}
_WORDS: Final = {
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
    "bool": "bool",
}


@dataclass(frozen=True, slots=True)
class ArrayView:
    """An array as plain data. Strides in elements; `dtype` is a word such as bf16; `ordinal` is
    the GPU, None where the library does not say."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    ordinal: int | None
    readonly: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        total = 1
        for extent in self.shape:
            total *= extent
        return total


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous array."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def word_of_name(name: str) -> str:
    """The word of an element type as numpy and torch name it, such as bfloat16; others keep their
    name."""
    return _WORDS.get(name, name)


def word_of_code(kind: str, size: int) -> str:
    """The word of numpy's kind letter and a size in bytes."""
    return "bool" if kind == "b" else f"{kind}{8 * size}"


def in_elements(strides: tuple[int, ...], size: int, argument: str) -> tuple[int, ...]:
    """Strides in elements from strides in bytes."""
    if any(step % size for step in strides):
        raise ArgumentError(
            argument,
            f"{argument} has strides of {list(strides)} bytes, no whole elements of {size}: "
            "copy it to an array of its own",
        )
    return tuple(step // size for step in strides)
