# SPDX-License-Identifier: Apache-2.0
"""What holds of every plan: room for every tile, every key once, a split bound, the workspace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_runtime.cost import estimate_ns, is_cluster
from attn_runtime.plan import (
    DeviceLimits,
    KernelLimits,
    Plan,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    plan,
)
from attn_runtime.splits import split_count, split_range, work_of

DEVICE = DeviceLimits(sm_count=132)
KERNEL = KernelLimits(cta_q=64, cta_s=64, ctas_per_sm=2, threads=128, shared_bytes=49152)
PROBLEM = Problem(
    token_num=64,
    batch_size=1,
    max_q_len=64,
    max_k_len=4096,
    num_heads=8,
    num_kv_heads=2,
    head_dim_v=128,
)

property_test = settings(max_examples=150, deadline=None)

policies = st.one_of(
    st.builds(SplitPolicy.heuristic, st.sampled_from([0, 1, 3, 64])),
    st.builds(SplitPolicy.fixed, st.integers(1, 80), st.sampled_from([0, 2, 64])),
    st.builds(SplitPolicy.fixed_size, st.integers(1, 5000)),
    st.just(SplitPolicy.off()),
)
kernels = st.builds(
    KernelLimits,
    cta_q=st.sampled_from([1, 16, 64, 128, 192]),
    cta_s=st.sampled_from([16, 32, 64, 80, 128]),
    ctas_per_sm=st.integers(1, 4),
    threads=st.just(128),
    shared_bytes=st.just(49152),
)
lengths = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 3000)), min_size=1, max_size=9)
windows = st.one_of(st.just(0), st.integers(1, 1500))


def bounded_problem(lens: list[tuple[int, int]], window: int, causal: bool, slack: int) -> Problem:
    """The problem of a batch, with bounds that exceed its lengths by `slack`."""
    return Problem(
        token_num=sum(q for q, _ in lens) + slack,
        batch_size=len(lens),
        max_q_len=max(q for q, _ in lens) + slack,
        max_k_len=max(k for _, k in lens) + slack,
        num_heads=4,
        num_kv_heads=2,
        head_dim_v=64,
        window_size=window,
        causal=causal,
    )


def visible_tiles(
    q_len: int, k_len: int, tile: int, problem: Problem, kernel: KernelLimits
) -> tuple[int, int]:
    """Key tiles [begin, end) that the query tile sees, straight from the definition of the mask."""
    rows = np.arange(tile * kernel.cta_q, min((tile + 1) * kernel.cta_q, q_len))
    position = rows + k_len - q_len
    window = problem.window_size
    first = np.maximum(position - window + 1, 0) if window else np.zeros_like(rows)
    if problem.causal:
        last = np.minimum(position, k_len - 1)
    else:
        last = np.minimum(position + window, k_len) - 1 if window else np.full_like(rows, k_len - 1)
    sees = first <= last
    if not sees.any():
        return 0, 0
    return int(first[sees].min()) // kernel.cta_s, int(last[sees].max()) // kernel.cta_s + 1


def tile_ranges(
    lens: list[tuple[int, int]], problem: Problem, kernel: KernelLimits
) -> list[tuple[int, int]]:
    """The visible key tiles of every query tile of a batch."""
    return [
        visible_tiles(q_len, k_len, tile, problem, kernel)
        for q_len, k_len in lens
        for tile in range(-(-q_len // kernel.cta_q))
    ]


@property_test
@given(lengths, windows, st.booleans(), st.integers(0, 300), kernels, policies)
def test_every_visible_key_tile_is_in_exactly_one_split(
    lens, window, causal, slack, kernel, policy
):
    problem = bounded_problem(lens, window, causal, slack)
    made = plan(problem, DEVICE, kernel, policy)
    for begin, end in tile_ranges(lens, problem, kernel):
        first, last = split_range(begin, end, made, np.arange(made.split_cnt))
        covered = [tile for a, b in zip(first, last, strict=True) for tile in range(a, b)]
        assert covered == list(range(begin, end))


@property_test
@given(lengths, windows, st.booleans(), st.integers(0, 300), kernels, policies)
def test_no_query_tile_has_more_splits_than_the_plan(lens, window, causal, slack, kernel, policy):
    problem = bounded_problem(lens, window, causal, slack)
    made = plan(problem, DEVICE, kernel, policy)
    for begin, end in tile_ranges(lens, problem, kernel):
        assert int(split_count(begin, end, made)) <= made.split_cnt


@property_test
@given(st.integers(0, 500), st.integers(0, 500), policies, kernels)
def test_splits_are_empty_exactly_from_the_count_on(begin, tiles, policy, kernel):
    made = plan(replace(PROBLEM, max_k_len=1000 * kernel.cta_s), DEVICE, kernel, policy)
    count = int(split_count(begin, begin + tiles, made))
    first, last = split_range(begin, begin + tiles, made, np.arange(count + 5))
    assert (first[:count] < last[:count]).all()
    assert (first[count:] == last[count:]).all()
    assert (count == 0) == (tiles == 0)


@property_test
@given(st.integers(1, 5000), st.integers(0, 200), st.integers(1, 300), kernels)
def test_fixed_size_boundaries_are_multiples_of_the_size(tokens, begin, tiles, kernel):
    made = plan(replace(PROBLEM, max_k_len=2**20), DEVICE, kernel, SplitPolicy.fixed_size(tokens))
    end = begin + tiles
    count = int(split_count(begin, end, made))
    _, last = split_range(begin, end, made, np.arange(count))
    inner = last[:-1]
    assert (inner % made.split_tiles == 0).all()
    assert made.split_tiles * kernel.cta_s >= tokens > (made.split_tiles - 1) * kernel.cta_s


@property_test
@given(lengths, st.integers(0, 3000), kernels, st.integers(1, 4000), st.integers(1, 132))
def test_fixed_size_cuts_do_not_depend_on_batch_bounds_or_device(lens, slack, kernel, tokens, sms):
    policy = SplitPolicy.fixed_size(tokens)
    small = plan(bounded_problem(lens, 0, True, 0), DEVICE, kernel, policy)
    large = plan(bounded_problem(lens + lens, 0, True, slack), DeviceLimits(sms), kernel, policy)
    for begin, end in tile_ranges(lens, bounded_problem(lens, 0, True, 0), kernel):
        assert split_count(begin, end, small) == split_count(begin, end, large)
        splits = np.arange(int(split_count(begin, end, small)))
        np.testing.assert_array_equal(
            split_range(begin, end, small, splits), split_range(begin, end, large, splits)
        )


@property_test
@given(lengths, st.integers(0, 3000), windows, kernels, st.integers(1, 64))
def test_fixed_cuts_do_not_depend_on_bounds(lens, slack, window, kernel, splits):
    policy = SplitPolicy.fixed(splits)
    tight = plan(bounded_problem(lens, window, True, 0), DEVICE, kernel, policy)
    loose = plan(bounded_problem(lens, window, True, slack), DEVICE, kernel, policy)
    for begin, end in tile_ranges(lens, bounded_problem(lens, window, True, 0), kernel):
        assert split_count(begin, end, tight) == split_count(begin, end, loose)


@property_test
@given(lengths, st.integers(0, 400), kernels)
def test_grid_has_room_for_every_query_tile(lens, slack, kernel):
    made = plan(bounded_problem(lens, 0, True, slack), DEVICE, kernel, SplitPolicy.off())
    tiles = [-(-q_len // kernel.cta_q) for q_len, _ in lens]
    if made.tiles_per_sequence:
        assert max(tiles) <= made.tiles_per_sequence
        assert made.q_tiles == made.tiles_per_sequence * len(lens)
        return
    starts = [
        (sum(q for q, _ in lens[:b]) + b * (kernel.cta_q - 1)) // kernel.cta_q
        for b in range(len(lens))
    ]
    ends = [*starts[1:], made.q_tiles]
    found = zip(starts, tiles, ends, strict=True)
    assert all(start + count <= end for start, count, end in found if count)


def test_equal_lengths_find_their_sequence_without_a_search():
    problem = replace(PROBLEM, token_num=8 * 100, batch_size=8, max_q_len=100)
    made = plan(problem, DEVICE, KERNEL, SplitPolicy.off())
    assert (made.q_tiles, made.tiles_per_sequence) == (16, 2)


def test_one_long_sequence_among_short_ones_is_found_by_search():
    problem = replace(PROBLEM, token_num=1000 + 63, batch_size=64, max_q_len=1000)
    made = plan(problem, DEVICE, KERNEL, SplitPolicy.off())
    assert made.tiles_per_sequence == 0
    assert made.q_tiles == (1063 + 64 * 63) // 64


def test_max_q_len_above_token_num_is_taken_as_token_num():
    tight = plan(replace(PROBLEM, max_q_len=64), DEVICE, KERNEL, SplitPolicy.off())
    loose = plan(replace(PROBLEM, max_q_len=10**9), DEVICE, KERNEL, SplitPolicy.off())
    assert loose == tight


@pytest.mark.parametrize("heads", [8, 2])
def test_without_a_mask_the_heads_of_a_group_are_a_section(heads):
    problem = replace(PROBLEM, batch_size=4, token_num=256, num_heads=8, num_kv_heads=heads)
    made = plan(replace(problem, causal=False), DEVICE, KERNEL, SplitPolicy.off())
    assert made.section == 8 // heads


def test_ctas_that_take_tile_after_tile_get_as_many_heads_as_l2_keeps_and_sixteen_at_least():
    kernel = replace(KERNEL, tile_counters=1)
    call = replace(PROBLEM, batch_size=64, token_num=64 * 4096, max_q_len=4096, num_heads=8)
    eight_mib = 2**23 // (4 * call.head_dim_v)  # keys of one KV head, which four heads share
    for keys, section in ((eight_mib // 64, 4 * 64), (eight_mib // 8, 4 * 8), (eight_mib, 16)):
        made = plan(replace(call, max_k_len=keys), DEVICE, kernel, SplitPolicy.off())
        assert made.section == section
    few = plan(replace(call, batch_size=1, max_k_len=64), DEVICE, kernel, SplitPolicy.off())
    assert few.section == 8, "there are no more"


@property_test
@given(st.integers(1, 300), st.integers(1, 2000), st.integers(1, 40), kernels)
def test_sections_of_causal_calls_are_even_and_end_with_short_tiles(batch, length, heads, kernel):
    problem = replace(
        PROBLEM,
        token_num=batch * length,
        batch_size=batch,
        max_q_len=length,
        max_k_len=length,
        num_heads=heads,
        num_kv_heads=heads,
    )
    made = plan(problem, DEVICE, kernel, SplitPolicy.off())
    sections = -(-batch * heads // made.section)
    assert sections * made.section < batch * heads + sections
    slots = DEVICE.sm_count * kernel.ctas_per_sm
    assert sections == 1 or 2 * made.section * made.tiles_per_sequence >= 3 * slots


@pytest.mark.parametrize("empty", ["token_num", "batch_size", "max_q_len"])
@pytest.mark.parametrize("policy", [SplitPolicy.heuristic(), SplitPolicy.fixed(8)])
def test_nothing_to_do_is_no_launch_and_no_workspace(empty, policy):
    made = plan(replace(PROBLEM, **{empty: 0}), DEVICE, KERNEL, policy)
    assert (made.grid_x, made.reduce_grid_x, made.workspace_bytes) == (0, 0, 0)
    assert made.split_cnt == 1


@pytest.mark.parametrize("policy", [SplitPolicy.fixed(8), SplitPolicy.fixed_size(64)])
def test_no_keys_at_all_still_launches_to_write_zeros(policy):
    made = plan(replace(PROBLEM, max_k_len=0), DEVICE, KERNEL, policy)
    assert made.grid_x == 8
    assert made.split_cnt == 1


@property_test
@given(lengths, kernels, policies)
def test_grid_is_tiles_times_heads_times_splits(lens, kernel, policy):
    problem = bounded_problem(lens, 0, True, 0)
    made = plan(problem, DEVICE, kernel, policy)
    assert made.grid_x == made.q_tiles * problem.num_heads * made.split_cnt
    assert (made.threads, made.shared_bytes) == (kernel.threads, kernel.shared_bytes)


@property_test
@given(lengths, kernels, policies)
def test_workspace_holds_both_partials_and_nothing_else(lens, kernel, policy):
    problem = bounded_problem(lens, 0, True, 0)
    made = plan(problem, DEVICE, kernel, policy)
    rows = problem.token_num * problem.num_heads
    if made.split_cnt == 1:
        assert (made.workspace_bytes, made.reduce_grid_x) == (0, 0)
        return
    assert made.partial_O_bytes == made.split_cnt * rows * problem.head_dim_v * 4
    assert made.partial_ML_offset % 256 == 0
    assert 0 <= made.partial_ML_offset - made.partial_O_bytes < 256
    assert made.workspace_bytes == made.partial_ML_offset + made.split_cnt * rows * 8
    assert 4 * (made.reduce_grid_x - 1) < rows <= 4 * made.reduce_grid_x


MERGING = replace(KERNEL, tile_counters=1, merged_splits=8)


def test_a_cluster_merges_splits_where_all_ctas_run_at_a_time():
    made = plan(PROBLEM, DEVICE, MERGING, SplitPolicy.heuristic(max_split_k=8))
    assert 1 < made.split_cnt <= 8
    assert made.cluster == made.split_cnt
    assert made.grid_x % made.cluster == 0
    assert made.section == 8, "the CTAs of a cluster count on one section"
    assert made.reduce_grid_x == 0
    reduced = plan(PROBLEM, DEVICE, KERNEL, SplitPolicy.fixed(made.split_cnt))
    assert made.workspace_bytes == reduced.workspace_bytes, "callers know it by its size"


@pytest.mark.parametrize(
    ("change", "kernel", "policy"),
    [
        ({}, KERNEL, SplitPolicy.heuristic()),
        ({}, MERGING, SplitPolicy.fixed(4)),
        ({}, MERGING, SplitPolicy.fixed_size(512)),
        ({"cp_size": 2, "max_k_len": 8192}, MERGING, SplitPolicy.heuristic()),
    ],
    ids=["kernel", "number asked for", "size asked for", "ranks"],
)
def test_other_splits_are_left_to_the_reduction(change, kernel, policy):
    made = plan(replace(PROBLEM, **change), DEVICE, kernel, policy)
    assert made.split_cnt > 1
    assert made.cluster == 1
    assert made.reduce_grid_x > 0


def test_tiles_that_do_not_all_run_at_a_time_are_no_clusters():
    kernel = replace(MERGING, ctas_per_sm=1)
    on_an_h200 = {2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}
    for splits, clusters in on_an_h200.items():
        most = max(tiles for tiles in range(67) if is_cluster(tiles, DEVICE, kernel, splits))
        assert 0.84 * clusters < most <= clusters
    assert not is_cluster(1, DEVICE, MERGING, 9), "a cluster has at most 8 CTAs"
    assert not is_cluster(1, DEVICE, MERGING, 1)


@property_test
@given(lengths, st.sampled_from([0, 1, 3, 64]))
def test_the_tiles_of_any_lengths_are_in_clusters_that_run_at_a_time(lens, cap):
    problem = bounded_problem(lens, 0, True, 0)
    made = plan(problem, DEVICE, MERGING, SplitPolicy.heuristic(cap))
    if made.cluster > 1:
        assert made.cluster == made.split_cnt
        assert made.grid_x <= DEVICE.sm_count * MERGING.ctas_per_sm
    else:
        assert (made.split_cnt > 1) is (made.reduce_grid_x > 0)


@pytest.mark.parametrize("tile_counters", [0, 1])
def test_a_launch_needs_the_counters_that_its_kernel_takes_tiles_from(tile_counters):
    kernel = replace(KERNEL, tile_counters=tile_counters)
    assert plan(PROBLEM, DEVICE, kernel, SplitPolicy.off()).counter_cnt == tile_counters
    nothing = replace(PROBLEM, token_num=0)
    assert plan(nothing, DEVICE, kernel, SplitPolicy.off()).counter_cnt == 0


def test_window_bounds_the_splits():
    whole = plan(replace(PROBLEM, max_k_len=2**20), DEVICE, KERNEL, SplitPolicy.fixed(64))
    window = replace(PROBLEM, max_k_len=2**20, window_size=128)
    assert whole.split_cnt == 64
    # 128 + 64 - 1 = 191 keys from anywhere touch at most 4 tiles of 64; both sides, 318 keys, 6.
    assert plan(window, DEVICE, KERNEL, SplitPolicy.fixed(64)).split_cnt == 4
    both = replace(window, causal=False)
    assert plan(both, DEVICE, KERNEL, SplitPolicy.fixed(64)).split_cnt == 6


def test_heuristic_does_not_split_a_full_device():
    full = replace(PROBLEM, batch_size=33, token_num=33 * 64)  # 33 * 8 = 264 CTAs of 264
    assert heuristic(full).split_cnt == 1
    assert heuristic(replace(full, batch_size=8, token_num=8 * 64)).split_cnt > 1


def test_heuristic_does_not_split_few_keys():
    assert heuristic(replace(PROBLEM, max_k_len=4 * 64)).split_cnt == 1


def test_heuristic_fills_an_idle_device():
    made = heuristic(replace(PROBLEM, token_num=1, max_q_len=1, max_k_len=2**17))
    capacity = DEVICE.sm_count * KERNEL.ctas_per_sm
    assert 0.8 * capacity <= made.grid_x <= capacity


calls = st.builds(
    lambda batch, q_len, k_len, causal: replace(
        PROBLEM,
        token_num=batch * q_len,
        batch_size=batch,
        max_q_len=q_len,
        max_k_len=k_len,
        causal=causal,
    ),
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(0, 2**18),
    st.booleans(),
)


@property_test
@given(calls, st.integers(0, 200), kernels)
def test_heuristic_takes_the_count_that_is_estimated_fastest(problem, cap, kernel):
    made = plan(problem, DEVICE, kernel, SplitPolicy.heuristic(cap))
    work = work_of(problem, kernel)
    least = estimate_ns(work, DEVICE, kernel, made.split_cnt)
    assert made.split_cnt <= (cap or 128)
    if work.tiles < 8 * DEVICE.sm_count * kernel.ctas_per_sm:
        counts = range(1, min(work.longest, cap or 128) + 1)
        shorter = [s for s in counts if -(-work.longest // s) < -(-work.longest // max(s - 1, 1))]
        assert all(estimate_ns(work, DEVICE, kernel, s) >= least for s in shorter)


@property_test
@given(calls, st.sampled_from([0, 2, 7, 128]), kernels)
def test_heuristic_with_room_for_its_own_count_makes_the_same_plan(problem, cap, kernel):
    made = plan(problem, DEVICE, kernel, SplitPolicy.heuristic(cap))
    policy = SplitPolicy.heuristic(made.split_cnt) if made.split_cnt > 1 else SplitPolicy.off()
    assert plan(problem, DEVICE, kernel, policy) == made


def test_causal_work_that_ends_in_one_long_tile_is_split():
    # 64 tiles of 2 heads on 132 SMs: without splits the last tile of a head is waited for.
    kernel = replace(KERNEL, cta_q=128, cta_s=128, ctas_per_sm=1)
    problem = replace(PROBLEM, token_num=8192, max_q_len=8192, max_k_len=8192, num_heads=2)
    assert plan(problem, DEVICE, kernel, SplitPolicy.heuristic()).split_cnt > 1
    full = replace(problem, causal=False)
    assert plan(full, DEVICE, kernel, SplitPolicy.heuristic()).split_cnt == 1


def test_a_chunk_that_fills_the_device_is_not_split_for_single_tokens_beside_it():
    # 32 tiles of 8 heads for 264 slots: the tokens of the others fill what it leaves.
    problem = replace(PROBLEM, token_num=2048, max_q_len=2048, max_k_len=8192)
    assert plan(problem, DEVICE, KERNEL, SplitPolicy.heuristic()).split_cnt == 1
    mixed = replace(problem, token_num=2048 + 8, batch_size=1 + 8)
    assert plan(mixed, DEVICE, KERNEL, SplitPolicy.heuristic()).split_cnt == 1


def test_a_few_rows_on_long_keys_are_split_beside_many_single_tokens():
    # Their number would fill the device, were all of them on keys as long.
    mixed = replace(PROBLEM, token_num=64 + 65, batch_size=1 + 65, max_k_len=2**17)
    assert plan(mixed, DEVICE, KERNEL, SplitPolicy.heuristic()).split_cnt > 1
    equal = replace(mixed, token_num=66, max_q_len=1)
    assert plan(equal, DEVICE, KERNEL, SplitPolicy.heuristic()).split_cnt == 1


def test_heuristic_counts_only_tiles_that_rows_can_fill():
    # 20 rows in 20 sequences are 20 tiles, whatever the bound of their lengths says.
    problem = replace(
        PROBLEM, token_num=20, batch_size=20, max_q_len=4096, num_heads=2, max_k_len=2**16
    )
    assert heuristic(problem).split_cnt > 1


def test_max_split_k_caps_counts_and_refuses_sizes():
    assert plan(PROBLEM, DEVICE, KERNEL, SplitPolicy.fixed(16, max_split_k=5)).split_cnt == 5
    assert plan(PROBLEM, DEVICE, KERNEL, SplitPolicy.fixed_size(512, max_split_k=8)).split_cnt == 8
    with pytest.raises(
        PlanError, match=r"split_size 511 cuts .* 4096 into up to 8 splits"
    ) as caught:
        plan(PROBLEM, DEVICE, KERNEL, SplitPolicy.fixed_size(511, max_split_k=7))
    assert caught.value.field == "max_split_k"


@pytest.mark.parametrize(
    ("changes", "policy", "field"),
    [
        ({"token_num": -1}, SplitPolicy.off(), "token_num"),
        ({"token_num": 2**31}, SplitPolicy.off(), "token_num"),
        ({"max_k_len": 2**40}, SplitPolicy.off(), "max_k_len"),
        ({"num_kv_heads": 3}, SplitPolicy.off(), "num_kv_heads"),
        ({"window_size": -1}, SplitPolicy.off(), "window_size"),
        ({"cp_size": 0}, SplitPolicy.off(), "cp_size"),
        ({}, SplitPolicy.fixed(0), "split_cnt"),
        ({}, SplitPolicy.fixed_size(0), "split_size"),
        ({}, SplitPolicy(SplitKind.OFF, 0, -1), "max_split_k"),
        # 2^24 tiles of 64 rows, 256 heads: 2^32 CTAs.
        (
            {"token_num": 2**30, "max_q_len": 2**30, "num_heads": 256},
            SplitPolicy.off(),
            "token_num",
        ),
        # 2^18 tiles x 256 heads fit, 64 splits of them do not.
        (
            {"token_num": 2**24, "max_q_len": 2**24, "num_heads": 256},
            SplitPolicy.fixed(64),
            "split_cnt",
        ),
        (
            {"token_num": 2**24, "max_q_len": 2**24, "num_heads": 256},
            SplitPolicy.fixed_size(64),
            "split_size",
        ),
    ],
)
def test_refusal_names_the_field_and_the_value(changes, policy, field):
    with pytest.raises(PlanError, match=field) as caught:
        plan(replace(PROBLEM, **changes), DEVICE, KERNEL, policy)
    assert caught.value.field == field


def test_grid_refusal_says_what_to_do():
    problem = replace(PROBLEM, token_num=2**30, max_q_len=2**30, num_heads=256)
    with pytest.raises(PlanError, match=r"4294967296 CTAs: at most 2147483647 .* fewer tokens"):
        plan(problem, DEVICE, KERNEL, SplitPolicy.off())


def heuristic(problem: Problem) -> Plan:
    return plan(problem, DEVICE, KERNEL, SplitPolicy.heuristic())
