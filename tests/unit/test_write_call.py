# SPDX-License-Identifier: Apache-2.0
"""The checks of a cache writer's call, over views of arrays that need not exist."""

from __future__ import annotations

from typing import Any

import pytest

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.call_buffer import CallBuffer
from attn_runtime.errors import ArgumentError
from attn_runtime.kv_cache import Values
from attn_runtime.problem import KeySharding
from attn_runtime.ranks import ONE_RANK, Ranks
from attn_runtime.write_call import ARRAYS, MOST_ROWS, check_write, places, write_grid

TOKENS, BATCH, HEADS, D = 100, 3, 2, 128
BLOCKS, BLOCK_LEN, MAX_BLOCKS = 40, 16, 10
POOL = (BLOCKS, BLOCK_LEN, HEADS)


def array(*shape: int, dtype: str = "bf16", strides: tuple[int, ...] | None = None) -> ArrayView:
    return ArrayView(shape, strides or dense_strides(shape), dtype, 0)


def config(cache: str = "paged", kv_dtype: str = "same") -> AttentionConfig:
    return AttentionConfig.of(
        mode="write", dtype="bf16", kv_dtype=kv_dtype, head_dim=D, cache=cache
    )


def arguments(cache: str, kv_dtype: str) -> dict[str, ArrayView | None]:
    """A call that is right."""
    views: dict[str, ArrayView | None] = dict.fromkeys(ARRAYS)
    views |= {"k_new": array(TOKENS, HEADS, D), "v_new": array(TOKENS, HEADS, D)}
    views |= {name: array(BATCH + 1, dtype="i32") for name in ("cu_q_len", "cu_k_len")}
    if cache == "block":
        views["block_ptrs"] = array(BLOCKS, dtype="i64")
        views["cu_block_nums"] = array(BATCH + 1, dtype="i32")
        return views
    shape = POOL if cache == "paged" else (500, HEADS)
    width, dtype = (D, "bf16") if kv_dtype == "same" else (D // 2 ** (kv_dtype == "int4"), "u8")
    views |= {"k": array(*shape, width, dtype=dtype), "v": array(*shape, width, dtype=dtype)}
    if kv_dtype in ("int8", "int4"):
        views |= {"k_pairs": array(*shape, 2), "v_pairs": array(*shape, 2)}
    if cache == "paged":
        views["block_table"] = array(BATCH, MAX_BLOCKS, dtype="i32")
    return views


def checked(
    cache: str = "paged", kv_dtype: str = "same", ranks: Ranks = ONE_RANK, **changes: Any
) -> Values:
    block_len = BLOCK_LEN if cache == "block" else None
    views = arguments(cache, kv_dtype) | changes
    return check_write(config(cache, kv_dtype), HEADS, views, block_len, None, 0, ranks)


def refusal(cache: str = "paged", kv_dtype: str = "same", **changes: Any) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        checked(cache, kv_dtype, **changes)
    return caught.value


@pytest.mark.parametrize("cache", ["linear", "block", "paged"])
@pytest.mark.parametrize("kv_dtype", ["same", "int8", "int4", "e4m3"])
def test_every_value_and_address_is_a_field_of_the_params(cache: str, kv_dtype: str) -> None:
    values = checked(cache, kv_dtype)
    offsets = {at: name for name, _, at in struct_layout.leaves("AttentionParams")}
    written = places(config(cache, kv_dtype))
    assert set(written) <= set(ARRAYS)
    fields = {offsets[at] for one in written.values() for at, _ in one}
    assert set(values) <= set(struct_layout.field_names("AttentionParams"))
    assert not {*values} & fields


def test_a_rank_of_many_says_which_keys_it_has_and_where_they_begin() -> None:
    ranks = Ranks(4, 2, KeySharding.ZIGZAG)
    assert ranks.fields().items() <= checked("block", ranks=ranks).items()
    with pytest.raises(ArgumentError, match="cu_rows is missing"):
        checked("linear", ranks=ranks)
    rows = array(BATCH + 1, dtype="i32")
    assert checked("linear", ranks=ranks, cu_rows=rows)["cp_size"] == 4
    assert refusal("paged", cu_rows=rows).argument == "cu_rows"


def test_strides_count_codes_whatever_bytes_they_take() -> None:
    for kv_dtype in ("same", "int8", "int4", "e4m3"):
        values = checked("paged", kv_dtype)
        assert values["paged_iter_params.k_head_stride"] == D
        assert values["paged_iter_params.v_block_stride"] == BLOCK_LEN * HEADS * D


def test_strides_of_pairs_are_in_elements() -> None:
    values = checked("paged", "int4")
    assert values["paged_iter_params.k_pair_head_stride"] == 2
    assert values["paged_iter_params.v_pair_token_stride"] == 2 * HEADS
    assert values["paged_iter_params.k_pair_block_stride"] == 2 * HEADS * BLOCK_LEN


def test_scales_are_one_or_one_of_each_head() -> None:
    one, each = array(1, dtype="f32"), array(HEADS, dtype="f32")
    assert checked("paged", "int8")["kv_scale_stride"] == 0
    assert checked("paged", "e4m3")["kv_scale_stride"] == 0
    assert checked("paged", "e4m3", k_scale=one, v_scale=one)["kv_scale_stride"] == 0
    assert checked("block", "e4m3", k_scale=each, v_scale=each)["kv_scale_stride"] == 1
    assert "different shapes" in str(refusal("paged", "e4m3", k_scale=one, v_scale=each))
    three = array(3, dtype="f32")
    assert "[num_kv_heads] = [2]" in str(refusal("linear", "e4m3", k_scale=three))


def test_pairs_are_needed_where_rows_have_them_and_refused_elsewhere() -> None:
    assert refusal("linear", "int8", v_pairs=None).argument == "v_pairs"
    assert "an e4m3 paged" in str(refusal("paged", "e4m3", k_pairs=array(*POOL, 2)))


@pytest.mark.parametrize(
    ("argument", "view", "words"),
    [
        ("k", array(*POOL, D), "u8"),
        ("k", array(*POOL, D // 2, dtype="u8"), "128"),
        ("k", array(*POOL, D, dtype="u8", strides=(5000, 264, 136, 1)), "multiples of 16"),
        ("v", array(*POOL, D, dtype="u8", strides=(8192, 512, 256, 2)), "back to back"),
        ("k_pairs", array(*POOL, 2, strides=(120, 6, 3, 1)), "must be even"),
        ("k_pairs", array(*POOL, 2, dtype="f16"), "bf16"),
        ("v_new", array(TOKENS - 1, HEADS, D), "99 tokens"),
        ("k_new", array(TOKENS, HEADS, D, strides=(512, 256, 1)), "back to back"),
    ],
)
def test_a_refusal_names_the_argument_and_what_it_must_be(
    argument: str, view: ArrayView, words: str
) -> None:
    error = refusal("paged", "int8", **{argument: view})
    assert error.argument == argument
    assert words in str(error)


def test_more_rows_than_a_kernel_counts_are_refused() -> None:
    tokens = MOST_ROWS // HEADS + 1
    rows = array(tokens, HEADS, D)
    error = refusal("paged", "same", k_new=rows, v_new=rows)
    assert error.argument == "k_new"
    assert "write them in parts" in str(error)


@pytest.mark.parametrize(
    ("rows", "ctas"),
    [(1, 1), (16, 1), (17, 2), (160, 10), (161, 10), (480, 10), (481, 16), (512, 16), (513, 17)],
)
def test_a_cta_of_a_grid_that_the_device_does_not_hold_takes_two_steps_of_rows(
    rows: int, ctas: int
) -> None:
    assert write_grid(rows, 16, 10) == ctas


def test_a_read_only_cache_is_refused() -> None:
    pool = array(*POOL, D)
    readonly = ArrayView(pool.shape, pool.strides, pool.dtype, 0, readonly=True)
    assert refusal("paged", "same", v=readonly).argument == "v"


def test_a_misaligned_address_is_refused_by_name() -> None:
    addresses = [0] * len(ARRAYS)
    packed = bytes(struct_layout.size_of("AttentionParams"))
    buffer = CallBuffer(packed, ARRAYS, places(config("paged", "int8")))
    assert not buffer.write(addresses), "nothing is new"
    addresses[ARRAYS.index("k_pairs")] = 2
    with pytest.raises(ArgumentError, match="k_pairs is at address 0x2"):
        buffer.write(addresses)


def test_a_writer_shows_its_kernel_and_heads() -> None:
    writer = CacheWriter(num_kv_heads=8, head_dim=128, kv_dtype="int8", cache="linear")
    assert repr(writer) == "<CacheWriter write_sm80_bf16_int8_d128_linear, 8 KV heads>"
