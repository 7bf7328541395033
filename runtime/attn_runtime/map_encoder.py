# SPDX-License-Identifier: Apache-2.0
"""The driver's encoder of tensor maps."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from attn_runtime.driver import bindings, call

TENSOR_MAP_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """16-bit rows for TMA, innermost dimension first: elements of each, bytes between neighbours of
    all but the first, elements of a box."""

    is_bf16: bool
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...]
    box: tuple[int, ...]


def tensor_map(layout: RowsLayout, address: int) -> bytes:
    """The driver's tensor map of rows: 128-byte swizzle, zeros outside. Raises DriverError."""
    names, driver = _tensor_map_names(), bindings()
    status, encoded = driver.cuTensorMapEncodeTiled(
        names.bf16 if layout.is_bf16 else names.f16,
        len(layout.dims),
        address,
        [driver.cuuint64_t(extent) for extent in layout.dims],
        [driver.cuuint64_t(stride) for stride in layout.byte_strides],
        [driver.cuuint32_t(extent) for extent in layout.box],
        [driver.cuuint32_t(1)] * len(layout.dims),
        names.no_interleave,
        names.swizzle,
        names.promotion,
        names.zero_fill,
    )
    if status:
        call("cuTensorMapEncodeTiled", (status,))
    return ctypes.string_at(encoded.getPtr(), TENSOR_MAP_BYTES)


class _TensorMapNames(NamedTuple):
    bf16: Any
    f16: Any
    no_interleave: Any
    swizzle: Any
    promotion: Any
    zero_fill: Any


@cache
def _tensor_map_names() -> _TensorMapNames:
    driver = bindings()
    types = driver.CUtensorMapDataType
    return _TensorMapNames(
        types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
