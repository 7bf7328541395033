# SPDX-License-Identifier: Apache-2.0
"""Random codes of a quantised cache, what they are read by, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import Dtype, KvDtype
from attn_codegen.tile import KV_BITS, PAIR_BYTES

if TYPE_CHECKING:
    from attn_runtime.bench.device import Bench

SCALE: Final = {KvDtype.INT8: 2.0**-6, KvDtype.INT4: 2.0**-2, KvDtype.E4M3: 2.0**-6}
"""With these, any codes are values of ordinary size; they are exact in 16 bits."""
ZERO: Final = -2.0


def code_bytes(kv_dtype: KvDtype, head_dim: int) -> int:
    """Of a row of K or V of one KV head, without its pair."""
    return head_dim * KV_BITS[kv_dtype] // 8


def row_bytes(kv_dtype: KvDtype, head_dim: int) -> int:
    """The same with its pair."""
    return code_bytes(kv_dtype, head_dim) + (PAIR_BYTES if kv_dtype.has_pairs else 0)


def scales_of(bench: Bench, dims: Sequence[int], dtype: Dtype, kv_dtype: KvDtype) -> dict[str, Any]:
    """The arguments of Attention beside codes [*dims, row]: pairs [*dims, 2], or a scale."""
    if kv_dtype is KvDtype.SAME:
        return {}
    if not kv_dtype.has_pairs:
        scale = bench.to_device(np.array([SCALE[kv_dtype]], np.float32))
        return {"k_scale": scale, "v_scale": scale}
    pairs = pairs_of(kv_dtype, dtype, int(np.prod(dims))).reshape(*dims, 2)
    return {name: bench.to_device(pairs) for name in ("k_pairs", "v_pairs")}


def values_of(codes: NDArray[Any], kv_dtype: KvDtype, pairs: Any = None) -> Any:
    """float64 [..., head_dim] of rows of codes, and what is no code as it is. `pairs` are the
    (scale, zero) of each row, [..., 2]; left out, those of `pairs_of`. The kernels read NaN of e4m3
    as 480, the next size that there would be."""
    if kv_dtype is KvDtype.SAME:
        return codes
    if kv_dtype is KvDtype.E4M3:
        return _e4m3_values()[codes] * SCALE[kv_dtype]
    if kv_dtype is KvDtype.INT4:
        nibbles = np.stack([codes & 0xF, codes >> 4], axis=-1)
        codes = nibbles.reshape(*codes.shape[:-1], -1)
    scale, zero = (SCALE[kv_dtype], ZERO) if pairs is None else np.split(pairs, 2, axis=-1)
    return codes.astype(np.float64) * scale + zero


class Rows:
    """Rows of codes [..., bytes of one] with their pairs [..., 2]; what is picked out of them comes
    as the values that they stand for."""

    def __init__(self, stored: NDArray[np.uint8], kv_dtype: KvDtype, pairs: Any = None) -> None:
        self._stored, self._kv_dtype, self._pairs = stored, kv_dtype, pairs

    def __getitem__(self, index: Any) -> Any:
        pairs = None if self._pairs is None else self._pairs[index]
        return values_of(self._stored[index], self._kv_dtype, pairs)


def rows_of(stored: Any, kv_dtype: KvDtype, pairs: Any = None) -> Any:
    """Rows from which values can be picked: of a plain cache as they are."""
    return stored if kv_dtype is KvDtype.SAME else Rows(stored, kv_dtype, pairs)


def pairs_of(kv_dtype: KvDtype, dtype: Dtype, count: int) -> Any:
    """[count, 2] of (scale, zero); bf16 as uint16 that holds its bits."""
    pair = np.array([SCALE[kv_dtype], ZERO], np.float32)
    is_bf16 = dtype is Dtype.BF16
    values = (pair.view(np.uint32) >> 16).astype(np.uint16) if is_bf16 else pair.astype(np.float16)
    return np.tile(values, (count, 1))


def _e4m3_values() -> NDArray[np.float64]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    size = np.where(exponent > 0, normal, mantissa / 8 * 2.0**-6)
    return np.where(code >> 7, -size, size)
