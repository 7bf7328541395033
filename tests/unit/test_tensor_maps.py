# SPDX-License-Identifier: Apache-2.0
"""The tensor maps of calls on Hopper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attn_codegen.config import Arch, AttentionConfig, Cache, KvDtype
from attn_codegen.tile import KV_BITS
from attn_codegen.tiling import tiling
from attn_runtime.kernel import nominal_limits
from attn_runtime.plan import plan
from attn_runtime.problem import DeviceLimits, Problem, SplitPolicy
from attn_runtime.tensor_maps import RowsMap, maps_of

HEADS, KV_HEADS, BLOCK_LEN = 8, 2, 64


def values_of(config: AttentionConfig, row: int) -> dict[str, int]:
    """The numbers of a call whose rows of K and V are `row` elements apart, heads of a token side
    by side."""
    owner = f"{config.cache}_iter_params"
    strides = {"head": row, "token": KV_HEADS * row, "block": BLOCK_LEN * KV_HEADS * row}
    return {
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "token_num": 100,
        "stride": HEADS * config.head_dim,
        f"{owner}.token_count": 100,
        f"{owner}.block_len": BLOCK_LEN,
        f"{owner}.block_count": 9,
        **{f"{owner}.{x}_{step}_stride": n for x in "kv" for step, n in strides.items()},
    }


def key_maps(config: AttentionConfig, row: int) -> list[RowsMap]:
    problem = Problem(
        token_num=100,
        batch_size=1,
        max_q_len=100,
        max_k_len=100,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim_v=config.head_dim_v,
    )
    planned = plan(problem, DeviceLimits(132), nominal_limits(config), SplitPolicy.off())
    maps = maps_of(config, tiling(config), planned, values_of(config, row))
    return [found for found in maps if found.argument in ("k", "v")]


@pytest.mark.parametrize("cache", Cache)
@pytest.mark.parametrize("kv_dtype", [kv for kv in KvDtype if kv is not KvDtype.SAME])
def test_rows_of_codes_are_mapped_like_rows_of_as_many_bytes(
    kv_dtype: KvDtype, cache: Cache
) -> None:
    codes = AttentionConfig(arch=Arch.SM90, kv_dtype=kv_dtype, head_dim=128, cache=cache)
    width = 128 * KV_BITS[kv_dtype] // 16
    elements = replace(codes, kv_dtype=KvDtype.SAME, head_dim=width, head_dim_v=width)
    found = key_maps(codes, 256)
    expected = key_maps(elements, 256 * KV_BITS[kv_dtype] // 16)
    assert len(found) == 2
    rows = min(BLOCK_LEN, tiling(codes).cta_s) if cache is not Cache.LINEAR else tiling(codes).cta_s
    assert found == [replace(one, box_rows=rows) for one in expected]
