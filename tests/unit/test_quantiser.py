# SPDX-License-Identifier: Apache-2.0
"""What holds of the quantiser's reference: its error bound, its extremes, its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantiser import (
    E4M3_NAN,
    LEVELS,
    dequantise,
    e4m3_codes,
    e4m3_values,
    error_bound,
    pack_nibbles,
    quantise,
    to_bits_up,
    unpack_nibbles,
)
from reference import Bits, from_bits, to_bits

DTYPES = ("f16", "bf16")
KV_DTYPES = ("int8", "int4", "e4m3")


def finite_bits(seed: int, dtype: str, rows: int = 8, dim: int = 64) -> Bits:
    """Rows of any finite bits, each row of similar sizes, some rows of one value."""
    rng = np.random.default_rng(seed)
    sizes = 2.0 ** rng.uniform(-14, 15, (rows, 1))
    x = rng.standard_normal((rows, dim)) * sizes + rng.standard_normal((rows, 1)) * sizes * 4
    x[rng.random(rows) < 0.2] = sizes[0]
    limit = 65504.0 if dtype == "f16" else 1e30
    return to_bits(np.clip(x, -limit, limit).astype(np.float32), dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from(KV_DTYPES))
def test_what_is_read_is_within_the_bound_of_what_was_written(
    seed: int, dtype: str, kv_dtype: str
) -> None:
    rows = finite_bits(seed, dtype)
    scale = float(2.0 ** np.random.default_rng(seed).uniform(-8, 8)) if kv_dtype == "e4m3" else 1.0
    kept = quantise(rows, dtype, kv_dtype, scale)
    error = np.abs(dequantise(kept, dtype, kv_dtype, np.float32(scale)) - from_bits(rows, dtype))
    assert (error <= error_bound(rows, kept, dtype, kv_dtype, np.float32(scale))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_the_smallest_element_is_kept_exactly_and_the_largest_has_nearly_the_last_code(
    dtype: str, kv_dtype: str
) -> None:
    """The scale is rounded up by 2^-7 of itself at most."""
    rows = to_bits(np.linspace(-3, 5, 64, dtype=np.float32)[None], dtype)
    kept = quantise(rows, dtype, kv_dtype)
    codes = unpack_nibbles(kept.codes) if kv_dtype == "int4" else kept.codes
    assert codes[0, 0] == 0
    assert codes[0, -1] >= round(LEVELS[kv_dtype] / (1 + 2.0**-7))
    assert dequantise(kept, dtype, kv_dtype)[0, 0] == -3.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_one_value_is_read_back_exactly(dtype: str) -> None:
    rows = np.full((1, 32), to_bits(np.float32([0.3]), dtype)[0])
    kept = quantise(rows, dtype, "int4")
    assert not kept.codes.any()
    assert (dequantise(kept, dtype, "int4") == from_bits(rows, dtype)).all()


def test_the_scale_comes_first_in_a_pair_and_the_even_element_in_the_low_nibble() -> None:
    rows = to_bits(np.float32([[0, 15, 1, 14]]), "f16")
    kept = quantise(rows, "f16", "int4")
    assert from_bits(kept.pairs, "f16").tolist() == [[1.0, 0.0]]
    assert kept.codes.tolist() == [[0xF0, 0xE1]]


def test_nibbles_survive_packing() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    assert (unpack_nibbles(pack_nibbles(codes)) == codes).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_up_gives_the_next_element_or_the_same(dtype: str) -> None:
    x = np.float32([0.0, 1.0, 1.0001, 0.1, 3e-5, 500.7])
    up = from_bits(to_bits_up(x, dtype), dtype)
    before = from_bits((to_bits_up(x[2:], dtype) - 1).astype(np.uint16), dtype)
    assert (up >= x).all()
    assert (before < x[2:]).all()


def test_every_e4m3_is_the_code_of_its_own_value_and_nan_is_0x7f() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = np.copysign(e4m3_values(), np.where(codes & 0x80, -1.0, 1.0))
    expected = np.where(np.isnan(values), E4M3_NAN, codes)
    assert (e4m3_codes(values.astype(np.float32)) == expected).all()


def test_e4m3_rounds_ties_to_even_and_saturates() -> None:
    values = np.float32([17, 19, 464, 465, 1e30, np.inf, 2.0**-10, 3 * 2.0**-10, -(2.0**-10)])
    read = e4m3_values()[e4m3_codes(values)]
    assert read.tolist() == [16, 20, 448, 448, 448, 448, 0, 2.0**-8, -0.0]


def test_denormal_e4m3_are_rounded_once() -> None:
    values = np.float32([2.0**-10, 2.0**-10 + 2.0**-33])
    assert e4m3_codes(values).tolist() == [0, 1]
