# SPDX-License-Identifier: Apache-2.0
"""The oracle of quantised caches: what a row becomes, bit for bit, and what it is read as.

int8, int4   zero    = min x                      exact: x is of the element type T
             scale   = (max x - min x) * (1 / levels)   in float32, then up to the next T
             inverse = 1 / scale                  float32; 0 where scale is below 2^-126
             code    = round((x - zero) inverse)  difference in float32, product exact, ties to
                                                  even, at most levels
             x       ~ code * scale + zero
e4m3         code    = e4m3(x * (1 / s))          float32, to nearest, ties to even, at most 448
             x       ~ code * s
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference import Bits, Floats, from_bits, to_bits

Bytes = NDArray[np.uint8]
Singles = NDArray[np.float32]

LEVELS = {"int8": 255, "int4": 15}
LEAST_NORMAL = 2.0**-126
E4M3_NAN = 0x7F
E4M3_MAX = 448.0


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """codes [..., bytes of a row]; pairs [..., 2] bits of (scale, zero), None for e4m3."""

    codes: Bytes
    pairs: Bits | None


def quantise(rows: Bits, dtype: str, kv_dtype: str, scale: float | Singles = 1.0) -> Quantised:
    """What a cache keeps of rows [..., head_dim]. `scale` is that of e4m3: one, or an array that
    broadcasts to the rows."""
    x = from_bits(rows, dtype).astype(np.float32)
    if kv_dtype == "e4m3":
        inverse = np.float32(1) / np.asarray(scale, np.float32)
        return Quantised(e4m3_codes(x * inverse[..., None]), None)
    levels = LEVELS[kv_dtype]
    zero = x.min(axis=-1, keepdims=True) + np.float32(0)  # no -0
    share = np.float32(1) / np.float32(levels)
    exact = (x.max(axis=-1, keepdims=True) - zero) * share
    scale_bits = to_bits_up(exact, dtype)
    step = from_bits(scale_bits, dtype).astype(np.float32)
    flat = step < LEAST_NORMAL
    scale_bits = np.where(flat, np.uint16(0), scale_bits)
    with np.errstate(divide="ignore"):
        inverse = np.where(flat, np.float32(0), np.float32(1) / step)
    product = (x - zero).astype(np.float64) * inverse.astype(np.float64)
    codes = np.minimum(np.rint(product), levels).astype(np.uint8)
    pairs = np.concatenate([scale_bits, to_bits(zero, dtype)], axis=-1)
    return Quantised(pack_nibbles(codes) if kv_dtype == "int4" else codes, pairs)


def dequantise(kept: Quantised, dtype: str, kv_dtype: str, scale: float | Singles = 1.0) -> Floats:
    """The exact values [..., head_dim] that a cache stands for."""
    if kept.pairs is None:
        return e4m3_values()[kept.codes] * np.asarray(scale, np.float64)[..., None]
    codes = unpack_nibbles(kept.codes) if kv_dtype == "int4" else kept.codes
    pairs = from_bits(kept.pairs, dtype)
    return codes.astype(np.float64) * pairs[..., :1] + pairs[..., 1:]


def error_bound(
    rows: Bits, kept: Quantised, dtype: str, kv_dtype: str, scale: float | Singles = 1.0
) -> Floats:
    """[..., head_dim] the most that a value read may differ from the one written.

    Integers: half a step from rounding to a code. The float32 difference and the inverse add three
    roundings of 2^-24 of a code, at most 255. A code above `levels` is none: scale was rounded up,
    from a product with three roundings, so that it is clipped by 2^-22 of itself at most. All of it
    is less than 2^-14 of a step. A row whose scale is below 2^-126 is read as its minimum.

    e4m3: half of the last place, which is 2^-4 of the value and at least 2^-10, times s; beyond
    448 s what is clipped; and one rounding each of 1 / s, of the product and of a denormal.
    """
    x = from_bits(rows, dtype)
    if kept.pairs is None:
        s = np.asarray(scale, np.float64)[..., None]
        inside = np.minimum(np.abs(x), E4M3_MAX * s)
        clipped = np.abs(x) - inside
        return np.maximum(inside * 2.0**-4, s * 2.0**-10) * (1 + 2.0**-20) + clipped
    step = from_bits(kept.pairs, dtype)[..., :1]
    flat = LEVELS[kv_dtype] * LEAST_NORMAL
    return np.broadcast_to(np.where(step > 0, step * (0.5 + 2.0**-14), flat), x.shape)


def to_bits_up(x: Singles, dtype: str) -> Bits:
    """The least f16 or bf16 that is not below a float32 >= 0, as bits."""
    bits = to_bits(x, dtype)
    below = from_bits(bits, dtype) < x
    return (bits + below).astype(np.uint16)


def pack_nibbles(codes: Bytes) -> Bytes:
    """Element 2i in the low nibble of byte i, element 2i + 1 in the high one."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_nibbles(packed: Bytes) -> Bytes:
    """[..., 2 * bytes] codes."""
    codes = np.stack([packed & 0xF, packed >> 4], axis=-1)
    return codes.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def e4m3_values() -> Floats:
    """[256] what each code stands for."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(
        exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6
    )
    value = np.where(code >> 7, -size, size)
    value[[E4M3_NAN, 0x80 | E4M3_NAN]] = np.nan
    return value


def e4m3_codes(x: Singles) -> Bytes:
    """The nearest e4m3 of each float32, ties to even, saturated; NaN becomes 0x7f."""
    sizes = e4m3_values()[:E4M3_NAN]  # ascending, and even codes have an even mantissa
    size = np.minimum(np.abs(x), np.float32(E4M3_MAX)).astype(np.float64)
    middles = (sizes[1:] + sizes[:-1]) / 2
    code = np.searchsorted(middles, size, side="left")  # a tie goes down
    is_tie = (code < len(middles)) & (size == middles[np.minimum(code, len(middles) - 1)])
    code = code + (is_tie & (code % 2 == 1))
    code = np.where(np.signbit(x), code | 0x80, code)
    return np.where(np.isnan(x), E4M3_NAN, code).astype(np.uint8)
