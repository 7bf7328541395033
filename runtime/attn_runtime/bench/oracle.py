# SPDX-License-Identifier: Apache-2.0
"""Correctness first: rows of an output against attention in float64.

A kernel rounds each probability and the output to 16 bits, by up to u (the unit roundoff) of
itself. Independent errors of up to u have standard deviation u / sqrt(3), so a column of a row is
off by about u sqrt(sum (p v)^2 / 3) and, at ten standard deviations, by less than six times
u sqrt(sum (p v)^2); then comes the rounding of the output. Scores and sums in float32 add less than
2^-14 of sum p |v|:

    |out - exact|  <=  u (|exact| + 6 sqrt(sum (p v)^2))  +  2^-14 sum p |v|
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import Dtype, Mask
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.shapes import Shape, cumulated

Floats = NDArray[np.float64]

UNIT_ROUNDOFF: Final = {Dtype.F16: 2.0**-11, Dtype.BF16: 2.0**-8}
_ROWS: Final = 4
"""Of each sequence that is looked at: the first, the last, and some between."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A row in float64 and how far an output may be from it, [head_dim] each."""

    out: Floats
    limit: Floats


def expected_row(q: Floats, k: Floats, v: Floats, dtype: Dtype, scale: float) -> Expected:
    """softmax(scale q k^T) v of one query over the keys that it sees: q [head_dim], k and v
    [keys, head_dim]."""
    scores = k @ q * scale
    p = np.exp(scores - scores.max(initial=-np.inf))
    p /= max(p.sum(), 1e-300)
    products = p[:, None] * v
    out = products.sum(axis=0)
    noise = np.sqrt((products**2).sum(axis=0))
    limit = UNIT_ROUNDOFF[dtype] * (np.abs(out) + 6 * noise)
    return Expected(out, limit + 2.0**-14 * np.abs(products).sum(axis=0))


class Checked(Protocol):
    """A call of ours whose arrays can be read; K and V of a sequence as they are stored,
    [k_len, num_kv_heads, head_dim], on the host, from which rows can be picked."""

    shape: Shape
    dtype: Dtype
    q: Any
    out: Any

    def __call__(self) -> object: ...
    def rows(self, sequence: int) -> tuple[Any, Any]: ...


def spot_check(call: Checked) -> int:
    """Run a call and compare some of its rows; returns how many. Raises BenchError."""
    shape = call.shape
    call()
    rng = np.random.default_rng(shape.token_num)
    checked = 0
    for sequence in dict.fromkeys((shape.batch_size - 1, int(rng.integers(shape.batch_size)))):
        checked += _check_sequence(call, sequence, rng)
    return checked


def _check_sequence(call: Checked, sequence: int, rng: np.random.Generator) -> int:
    shape, heads = call.shape, call.shape.heads
    keys, values = call.rows(sequence)
    q_len, first_row = shape.q_lens[sequence], cumulated(shape.q_lens)[sequence]
    places = {0, q_len - 1, *rng.integers(0, q_len, _ROWS - 2).tolist()}
    for place in sorted(places):
        head = int(rng.integers(heads.num_heads))
        kv_head = head // (heads.num_heads // heads.num_kv_heads)
        row = first_row + place
        seen = keys_seen(shape, sequence, place)
        expected = expected_row(
            from_bits(call.q[row].get()[head]),
            from_bits(keys[:seen, kv_head]),
            from_bits(values[:seen, kv_head]),
            call.dtype,
            heads.head_dim**-0.5,
        )
        got = from_bits(call.out[row].get()[head])
        _require_close(got, expected, f"sequence {sequence}, query {place}, head {head}", shape)
    return len(places)


def keys_seen(shape: Shape, sequence: int, place: int) -> int:
    """How many keys a query sees; the causal mask is aligned bottom-right."""
    k_len = shape.k_lens[sequence]
    if shape.mask is Mask.FULL:
        return k_len
    return max(0, place + 1 + k_len - shape.q_lens[sequence])


def _require_close(got: Floats, expected: Expected, where: str, shape: Shape) -> None:
    error = np.abs(got - expected.out)
    if np.all(error <= expected.limit):  # NaN is not
        return
    column = int(np.argmax(np.where(error <= expected.limit, 0.0, 1.0)))
    raise BenchError(
        f"wrong output for {shape.row} {shape.column}: {where}, column {column} is "
        f"{got[column]:.6g}, float64 gives {expected.out[column]:.6g}, and at most "
        f"{expected.limit[column]:.2g} may lie between: nothing is timed; please report it"
    )


def from_bits(values: Any) -> Floats:
    """float64 of f16, or of bf16 as uint16 that holds its bits."""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float64)
