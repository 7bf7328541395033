# SPDX-License-Identifier: Apache-2.0
"""Query heads of a group that share a tile: how many, how many tiles, boxes of which shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_codegen.config import Arch, AttentionConfig, Cache
from attn_codegen.tiling import tiling
from attn_runtime.plan import DeviceLimits, KernelLimits, PlanError, Problem, SplitPolicy, plan
from attn_runtime.tensor_maps import maps_of, section_of

DEVICE = DeviceLimits(sm_count=132)
KERNEL = KernelLimits(128, 128, 1, 384, 200_000, packed_heads=16)
PROBLEM = Problem(
    token_num=512,
    batch_size=4,
    max_q_len=128,
    max_k_len=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim_v=128,
)
CONFIG = AttentionConfig(arch=Arch.SM90, head_dim=128, cache=Cache.LINEAR)
STRIDES = {
    f"linear_iter_params.{name}_{of}_stride": 1024 for name in "kv" for of in ("head", "token")
}
VALUES = {"num_heads": 32, "num_kv_heads": 8, "token_num": 512, "stride": 4096, "max_k_len": 4096}
VALUES |= {"batch_size": 4, "linear_iter_params.token_count": 16_384} | STRIDES


@pytest.mark.parametrize(
    ("group", "packed"),
    [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (7, 1), (8, 8), (16, 16), (64, 16)],
)
def test_as_many_heads_are_packed_as_divide_the_group_and_the_rows_of_a_warp(
    group: int, packed: int
) -> None:
    problem = replace(PROBLEM, num_heads=8 * group)
    assert plan(problem, DEVICE, KERNEL, SplitPolicy.off()).packed_heads == packed


def test_a_kernel_that_packs_nothing_keeps_tiles_of_one_head() -> None:
    made = plan(PROBLEM, DEVICE, replace(KERNEL, packed_heads=1), SplitPolicy.off())
    assert (made.packed_heads, made.cta_q) == (1, 128)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 100_000),
    st.integers(1, 500),
    st.integers(1, 2**20),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_packing_depends_on_neither_the_batch_nor_a_bound(
    tokens: int, batch: int, longest: int, group: int
) -> None:
    problem = replace(PROBLEM, num_heads=8 * group)
    other = replace(
        problem, token_num=tokens, batch_size=batch, max_q_len=longest, max_k_len=longest
    )
    policy = SplitPolicy.fixed_size(1024)
    one, two = plan(problem, DEVICE, KERNEL, policy), plan(other, DEVICE, KERNEL, policy)
    assert (one.packed_heads, one.cta_q) == (two.packed_heads, two.cta_q)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from([1, 2, 4, 16]))
def test_the_grid_has_room_for_every_tile_of_every_pack(q_lens: list[int], group: int) -> None:
    problem = replace(
        PROBLEM,
        token_num=sum(q_lens),
        batch_size=len(q_lens),
        max_q_len=max(q_lens),
        num_heads=8 * group,
    )
    made = plan(problem, DEVICE, KERNEL, SplitPolicy.off())
    tokens = KERNEL.cta_q // group
    assert made.grid_x == made.q_tiles * 8
    assert made.q_tiles >= sum(-(-q_len // tokens) for q_len in q_lens)


def test_short_queries_of_a_group_share_a_tile() -> None:
    problem = replace(PROBLEM, token_num=4 * 16, max_q_len=16)
    packed = plan(problem, DEVICE, KERNEL, SplitPolicy.off())
    alone = plan(problem, DEVICE, replace(KERNEL, packed_heads=1), SplitPolicy.off())
    assert packed.grid_x * 4 == alone.grid_x


def test_packed_heads_that_do_not_divide_the_rows_are_refused() -> None:
    kernel = replace(KERNEL, cta_q=24)
    with pytest.raises(PlanError, match="packed_heads is 16: it must divide cta_q, which is 24"):
        plan(PROBLEM, DEVICE, kernel, SplitPolicy.off())


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_a_box_of_q_is_a_warpgroup_and_a_box_of_out_a_warp(group: int) -> None:
    made = plan(replace(PROBLEM, num_heads=8 * group), DEVICE, KERNEL, SplitPolicy.off())
    q, *_, out = maps_of(CONFIG, tiling(CONFIG), made, VALUES)
    assert q.box == (64, group, 64 // group)
    assert out.box == (64, group, 16 // group)


def test_a_section_counts_packs_of_heads() -> None:
    packed = plan(PROBLEM, DEVICE, KERNEL, SplitPolicy.off())
    alone = plan(PROBLEM, DEVICE, replace(KERNEL, packed_heads=1), SplitPolicy.off())
    assert section_of(CONFIG, VALUES, packed) * 4 == section_of(CONFIG, VALUES, alone)
