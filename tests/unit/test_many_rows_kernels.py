# SPDX-License-Identifier: Apache-2.0
"""Which prefill kernels a decode call of many rows is tried on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from attn_runtime.attention import Attention
from attn_runtime.driver import Context, Device
from attn_runtime.kernels import many_rows_candidates

HOPPER = Device(0, "GPU", (9, 0), 132, 227 << 10)
AMPERE = Device(0, "GPU", (8, 0), 108, 163 << 10)


def prefill_tiles(device: Device = HOPPER, **axes: Any) -> list[str]:
    """The prefill kernels that an Attention picks among."""
    usual = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 128, "mode": "decode"}
    context = cast(Context, SimpleNamespace(device=device))
    settings = Attention(**(usual | axes)).settings
    return [config.name for config in many_rows_candidates(settings, context)]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ({}, ["bf16_d128_paged_causal", "bf16_d128_paged_causal_t64x128"]),
        ({"head_dim": 256}, ["bf16_d256_paged_causal", "bf16_d256_paged_causal_t64x64"]),
        ({"kv_dtype": "int8"}, ["bf16_int8_d128_paged_causal"]),
        (
            {"cache": "linear", "dtype": "f16"},
            ["f16_d128_linear_causal", "f16_d128_linear_causal_t64x128"],
        ),
    ],
)
def test_one_prefill_kernel_of_each_height_is_tried(axes: dict[str, Any], names: list[str]) -> None:
    assert prefill_tiles(**axes) == [f"prefill_sm90_{name}" for name in names]


@pytest.mark.parametrize(
    "axes",
    [
        {"num_heads": 16},  # 16 rows of 8 tokens
        {"kv_dtype": "e4m3"},
        {"cache": "linear", "window_size": 100},
        {"arch": "sm80"},
        {"tile": "t32x64"},
        {"device": AMPERE},
        {"mode": "prefill"},
    ],
)
def test_what_prefill_kernels_do_not_compute_as_well_is_left_to_decode(
    axes: dict[str, Any],
) -> None:
    assert prefill_tiles() and not prefill_tiles(**axes)
