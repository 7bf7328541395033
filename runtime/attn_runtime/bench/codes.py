# SPDX-License-Identifier: Apache-2.0
"""Random codes of a quantised cache, and what they stand for."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import KvDtype
from attn_codegen.tiling import KV_BITS, PAIR_BYTES, has_pairs

SCALE: Final = {KvDtype.INT8: 2.0**-6, KvDtype.INT4: 2.0**-2, KvDtype.E4M3: 2.0**-7}
"""With these, any codes are values of ordinary size; they are exact in 16 bits."""
ZERO: Final = -2.0


def row_bytes(kv_dtype: KvDtype, head_dim: int) -> int:
    """Of a row of K or V of one KV head, its pair included."""
    pair = PAIR_BYTES if has_pairs(kv_dtype) else 0
    return head_dim * KV_BITS[kv_dtype] // 8 + pair


def values_of(codes: NDArray[np.uint8], kv_dtype: KvDtype) -> Any:
    """float64 [..., head_dim] of rows of codes. The kernels read NaN of e4m3 as 480, the next size
    that there would be."""
    if kv_dtype is KvDtype.E4M3:
        return _e4m3_values()[codes] * SCALE[kv_dtype]
    if kv_dtype is KvDtype.INT4:
        nibbles = np.stack([codes & 0xF, codes >> 4], axis=-1)
        codes = nibbles.reshape(*codes.shape[:-1], -1)
    return codes.astype(np.float64) * SCALE[kv_dtype] + ZERO


def pairs_of(kv_dtype: KvDtype, is_bf16: bool, count: int) -> Any:
    """[count, 2] bits of (scale, zero)."""
    pair = np.array([SCALE[kv_dtype], ZERO], np.float32)
    bits = pair.view(np.uint32) >> 16 if is_bf16 else pair.astype(np.float16).view(np.uint16)
    return np.tile(bits.astype(np.uint16), (count, 1))


def _e4m3_values() -> NDArray[np.float64]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    size = np.where(exponent > 0, normal, mantissa / 8 * 2.0**-6)
    return np.where(code >> 7, -size, size)
