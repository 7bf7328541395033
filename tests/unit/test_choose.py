# SPDX-License-Identifier: Apache-2.0
"""Which tile a call takes: the one that is estimated fastest, and the same one when asked again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from attn_runtime.choose import UNFIT, choose, rank
from attn_runtime.plan import plan
from attn_runtime.problem import DeviceLimits, KernelLimits, Problem, SplitPolicy

DEVICE = DeviceLimits(sm_count=132, shared_per_cta=232448)
LONG = KernelLimits(128, 128, 1, 384, 200000, tile_ns=2600, step_ns=1456)
SHORT = replace(LONG, tile_ns=1770, step_ns=1541)
SMALL = KernelLimits(64, 128, 1, 256, 150000, tile_ns=1300, step_ns=900)
LARGE = replace(LONG, shared_bytes=300000, step_ns=1000)
TILES = (LONG, SHORT, SMALL)


def square(length: int, tokens: int = 16384, heads: int = 16) -> Problem:
    """Full attention of sequences of one length."""
    return Problem(
        token_num=tokens,
        batch_size=tokens // length,
        max_q_len=length,
        max_k_len=length,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim_v=128,
        causal=False,
    )


problems = st.builds(
    lambda batch, q_len, k_len, heads, causal, window: Problem(
        token_num=batch * q_len,
        batch_size=batch,
        max_q_len=q_len,
        max_k_len=k_len,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim_v=128,
        causal=causal,
        window_size=window,
    ),
    st.integers(1, 40),
    st.integers(1, 3000),
    st.integers(0, 2**17),
    st.integers(1, 32),
    st.booleans(),
    st.sampled_from([0, 0, 500]),
)
kernels = st.builds(
    lambda cta_q, cta_s, tile_ns, step_ns: KernelLimits(
        cta_q, cta_s, 1, 256, 1000, tile_ns=tile_ns, step_ns=step_ns
    ),
    st.sampled_from([64, 128, 192]),
    st.sampled_from([64, 128]),
    st.integers(0, 5000),
    st.integers(0, 5000),
)


def test_short_keys_take_the_tile_that_begins_cheaply_and_long_ones_the_cheap_step():
    off = SplitPolicy.off()
    assert choose(square(1024), DEVICE, (LONG, SHORT), off) == 1
    assert choose(square(2048), DEVICE, (LONG, SHORT), off) == 0


def test_few_rows_take_a_smaller_tile():
    assert choose(square(512, tokens=512), DEVICE, TILES, SplitPolicy.heuristic()) == 2
    assert choose(square(4096), DEVICE, TILES, SplitPolicy.heuristic()) == 0


def test_a_tile_that_does_not_fit_the_device_is_passed_over():
    assert rank(square(4096), DEVICE, LARGE, SplitPolicy.off()) == UNFIT
    assert choose(square(4096), DEVICE, (LARGE, LONG), SplitPolicy.off()) == 1
    roomy = replace(DEVICE, shared_per_cta=400000)
    assert choose(square(4096), roomy, (LARGE, LONG), SplitPolicy.off()) == 0


def test_equal_tiles_go_to_the_first():
    assert choose(square(1024), DEVICE, (LONG, LONG), SplitPolicy.heuristic()) == 0


@settings(max_examples=200, deadline=None)
@given(problems, problems, st.integers(1, 4000), st.lists(kernels, min_size=2, max_size=4))
def test_splits_of_a_given_size_take_one_tile_whatever_the_batch(first, second, size, tiles):
    policy = SplitPolicy.fixed_size(size)
    assert choose(first, DEVICE, tiles, policy) == choose(second, DEVICE, tiles, policy)


@settings(max_examples=300, deadline=None)
@given(problems, st.sampled_from([0, 2, 9]), st.lists(kernels, min_size=2, max_size=4))
def test_a_workspace_for_the_plan_leaves_the_tile_as_it_was(problem, cap, tiles):
    best = choose(problem, DEVICE, tiles, SplitPolicy.heuristic(cap))
    splits = plan(problem, DEVICE, tiles[best], SplitPolicy.heuristic(cap)).split_cnt
    again = SplitPolicy.heuristic(splits) if splits > 1 else SplitPolicy.off()
    assert choose(problem, DEVICE, tiles, again) == best
