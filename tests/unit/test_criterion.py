# SPDX-License-Identifier: Apache-2.0
"""The criterion lets honest rounding pass, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from criterion import complaints, lse_limit
from reference import Batch, to_bits
from reference_torch import TorchResult, attention, attention_at_input_precision, from_bits, torch

BATCH = Batch(
    q_lens=(70, 1, 40, 5),
    k_lens=(70, 300, 3, 9),
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    head_dim_v=64,
    causal=True,
    finished=(False, False, False, True),
)
LIVE_ROW = 69
"""It sees 70 keys."""
BLIND_ROW = 71
"""It sees none."""


class Solved:
    """A batch in one type: inputs, the oracle's result, and torch's."""

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(0)
        rows, keys = BATCH.token_num, BATCH.key_num
        shapes = [(rows, 4, 64), (keys, 2, 64), (keys, 2, 64)]
        drawn = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.q, self.k, self.v = (from_bits(to_bits(x, dtype), dtype, "cpu") for x in drawn)
        self.dtype = dtype
        self.exact = attention(BATCH, self.q, self.k, self.v)
        self.torch_out = attention_at_input_precision(BATCH, self.q, self.k, self.v)

    def complaints(self, out: torch.Tensor, lse: torch.Tensor) -> list[str]:
        limit = lse_limit(BATCH, self.q, self.k)
        got = TorchResult(out, lse)
        return complaints(BATCH, self.dtype, got, self.exact, self.torch_out, limit)


@pytest.fixture(params=["f16", "bf16"])
def solved(request: pytest.FixtureRequest) -> Solved:
    return Solved(request.param)


def test_rounded_oracle_passes(solved: Solved) -> None:
    out = solved.exact.out.to(solved.q.dtype)
    assert not solved.complaints(out, solved.exact.lse.float())


def test_kernel_arithmetic_passes(solved: Solved) -> None:
    """Scores kept in float32, probabilities unnormalised and rounded, as kernels do."""
    scaled = [x.float() for x in (solved.q, solved.k, solved.v)]
    out = attention_at_input_precision(BATCH, *scaled)
    assert not solved.complaints(out.to(solved.q.dtype), solved.exact.lse.float())


@pytest.mark.parametrize("row", [0, LIVE_ROW, BLIND_ROW])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5])
def test_one_wrong_element_is_found(solved: Solved, row: int, value: float) -> None:
    out = solved.exact.out.to(solved.q.dtype)
    out[row, 1, 7] += value
    assert len(solved.complaints(out, solved.exact.lse.float())) == 1


@pytest.mark.parametrize(("row", "value"), [(LIVE_ROW, 1e-3), (LIVE_ROW, float("nan"))])
def test_wrong_lse_is_found(solved: Solved, row: int, value: float) -> None:
    lse = solved.exact.lse.float()
    lse[1, row] += value
    assert len(solved.complaints(solved.exact.out.to(solved.q.dtype), lse)) == 1


def test_finite_lse_of_a_blind_row_is_found(solved: Solved) -> None:
    lse = solved.exact.lse.float()
    lse[0, BLIND_ROW] = -1e30
    assert len(solved.complaints(solved.exact.out.to(solved.q.dtype), lse)) == 1


def test_one_percent_is_too_much(solved: Solved) -> None:
    out = (solved.exact.out * 1.01).to(solved.q.dtype)
    assert solved.complaints(out, solved.exact.lse.float())


def test_one_masked_key_too_many_is_found(solved: Solved) -> None:
    off_by_one = Batch(
        **{field: getattr(BATCH, field) for field in BATCH.__slots__} | {"causal": False}
    )
    wrong = attention(off_by_one, solved.q, solved.k, solved.v)
    assert solved.complaints(wrong.out.to(solved.q.dtype), wrong.lse.float())


def test_rows_of_a_finished_sequence_are_not_judged(solved: Solved) -> None:
    out = solved.exact.out.to(solved.q.dtype)
    out[-5:] = float("nan")
    assert not solved.complaints(out, solved.exact.lse.float())
