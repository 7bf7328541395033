# SPDX-License-Identifier: Apache-2.0
"""The torch oracle is the numpy oracle, on every device there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import reference
import reference_torch
from reference import Batch, to_bits
from reference_torch import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BATCH = Batch(
    q_lens=(3, 0, 1, 40, 5, 9),
    k_lens=(5, 4, 0, 13, 33, 70),
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    head_dim_v=16,
    causal=True,
    finished=(False, False, False, False, True, False),
)
SINKS = (-2.0, 0.0, 1.5, 30.0, -30.0, 3.0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 7])
@pytest.mark.parametrize("scores_at_once", [50, 2**27])
def test_torch_oracle_is_the_numpy_oracle(
    device, dtype, causal, window, scores_at_once, monkeypatch
):
    monkeypatch.setattr(reference_torch, "SCORES_AT_ONCE", scores_at_once)
    batch = replace(BATCH, causal=causal, window=window, scale=0.25)
    bits = [to_bits(x, dtype) for x in _inputs(batch)]
    expected = reference.attention(batch, *(reference.from_bits(x, dtype) for x in bits))
    tensors = [reference_torch.from_bits(x, dtype, device) for x in bits]
    out, lse = reference_torch.attention(batch, *tensors)
    np.testing.assert_allclose(out.cpu().numpy(), expected.out, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(lse.cpu().numpy(), expected.lse, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("window", [0, 7])
def test_torch_oracle_with_sinks_is_the_numpy_oracle(device: str, window: int) -> None:
    batch = replace(BATCH, window=window, sinks=SINKS)
    bits = [to_bits(x, "bf16") for x in _inputs(batch)]
    expected = reference.attention(batch, *(reference.from_bits(x, "bf16") for x in bits))
    tensors = [reference_torch.from_bits(x, "bf16", device) for x in bits]
    out, lse = reference_torch.attention(batch, *tensors)
    np.testing.assert_allclose(out.cpu().numpy(), expected.out, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(lse.cpu().numpy(), expected.lse, rtol=1e-11, atol=1e-13)
    rounded = reference_torch.attention_at_input_precision(batch, *tensors)
    np.testing.assert_allclose(rounded.cpu().double().numpy(), expected.out, atol=0.03)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_input_precision_errs_by_a_few_roundings(device, dtype):
    q, k, v = (reference_torch.from_bits(to_bits(x, dtype), dtype, device) for x in _inputs(BATCH))
    exact = reference_torch.attention(BATCH, q, k, v).out
    rounded = reference_torch.attention_at_input_precision(BATCH, q, k, v)
    error = (rounded.double() - exact).abs().max().item()
    # Scores, probabilities and output are rounded once each: a few times the unit roundoff.
    unit = reference.UNIT_ROUNDOFF[dtype] * exact.abs().max().item()
    assert 0.1 * unit < error < 8 * unit


def _inputs(batch: Batch) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [
        (batch.token_num, batch.num_heads, batch.head_dim),
        (batch.key_num, batch.num_kv_heads, batch.head_dim),
        (batch.key_num, batch.num_kv_heads, batch.head_dim_v),
    ]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
