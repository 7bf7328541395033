# SPDX-License-Identifier: Apache-2.0
"""The checks of a call, over views of arrays that need not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attn_runtime.arguments import (
    Call,
    Numbers,
    array_bytes,
    check_call,
    check_devices,
    check_workspace,
)
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.errors import ArgumentError
from attn_runtime.launch import ARRAYS
from attn_runtime.ranks import ONE_RANK, Ranks
from attn_runtime.settings import Settings, make_settings

TOKENS, BATCH, HEADS, KV_HEADS, D, DV = 100, 3, 8, 2, 128, 64
BLOCKS, BLOCK_LEN, MAX_BLOCKS = 40, 16, 10


def array(*shape: int, dtype: str = "bf16", strides: tuple[int, ...] | None = None) -> ArrayView:
    return ArrayView(shape, strides or dense_strides(shape), dtype, 0)


def ints(*shape: int) -> ArrayView:
    return array(*shape, dtype="i32")


def settings(cache: str = "paged", **changes: Any) -> Settings:
    chosen: dict[str, Any] = {
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": D,
        "head_dim_v": D if cache == "block" else DV,
        "dtype": "bf16",
        "cache": cache,
        "mask": "causal",
        "window_size": 0,
        "softmax_scale": None,
        "split": "heuristic",
    }
    return make_settings(**(chosen | changes))


def arguments(cache: str = "paged") -> dict[str, ArrayView | None]:
    """A call that is right."""
    views: dict[str, ArrayView | None] = dict.fromkeys(ARRAYS)
    lengths = {"cu_q_len": ints(BATCH + 1), "cu_k_len": ints(BATCH + 1)}
    views |= {"q": array(TOKENS, HEADS, D), **lengths}
    if cache == "linear":
        views |= {"k": array(500, KV_HEADS, D), "v": array(500, KV_HEADS, DV)}
    if cache == "paged":
        pool = (BLOCKS, BLOCK_LEN, KV_HEADS)
        views |= {"k": array(*pool, D), "v": array(*pool, DV)}
        views["block_table"] = ints(BATCH, MAX_BLOCKS)
    if cache == "block":
        views |= {"block_ptrs": array(BLOCKS, dtype="i64"), "cu_block_nums": ints(BATCH + 1)}
    return views


def numbers(cache: str, **changes: Any) -> Numbers:
    return Numbers(**({"block_len": BLOCK_LEN} if cache == "block" else {}) | changes)


def checked(cache: str = "paged", given: Numbers | None = None, **changes: Any) -> Call:
    return check_call(settings(cache), arguments(cache) | changes, given or numbers(cache))


def refusal(cache: str = "paged", **changes: Any) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        checked(cache, **changes)
    return caught.value


def test_a_paged_call_gives_strides_in_elements_and_bounds_from_the_arrays() -> None:
    call = checked()
    row = KV_HEADS * D
    expected = {
        "paged_iter_params.k_block_stride": BLOCK_LEN * row,
        "paged_iter_params.k_token_stride": row,
        "paged_iter_params.k_head_stride": D,
        "paged_iter_params.v_head_stride": DV,
        "paged_iter_params.max_blocks": MAX_BLOCKS,
        "paged_iter_params.block_count": BLOCKS,
        "paged_iter_params.block_len": BLOCK_LEN,
        "stride": HEADS * D,
        "max_q_len": TOKENS,
        "max_k_len": MAX_BLOCKS * BLOCK_LEN,
        "cache": 2,
        "causal": True,
        "cp_size": 1,
    }
    assert expected.items() <= call.values.items()
    assert call.out_shape == (TOKENS, HEADS, DV)
    assert call.lse_shape == (HEADS, TOKENS)
    assert call.problem.batch_size == BATCH


def test_pools_in_hnd_order_are_a_transposed_view() -> None:
    """[block, head, token, head_dim] in memory."""
    shape = (BLOCKS, BLOCK_LEN, KV_HEADS, D)
    hnd = array(*shape, strides=(KV_HEADS * BLOCK_LEN * D, D, BLOCK_LEN * D, 1))
    values = checked(k=hnd).values
    assert values["paged_iter_params.k_token_stride"] == D
    assert values["paged_iter_params.k_head_stride"] == BLOCK_LEN * D


def test_a_linear_call_takes_k_and_v_that_lie_in_one_array_with_q() -> None:
    row = (HEADS + 2 * KV_HEADS) * D
    q = array(TOKENS, HEADS, D, strides=(row, D, 1))
    k = array(TOKENS, KV_HEADS, D, strides=(row, D, 1))
    v = array(TOKENS, KV_HEADS, DV, strides=(row, D, 1))
    call = checked("linear", q=q, k=k, v=v)
    assert call.values["stride"] == row
    assert call.values["linear_iter_params.v_token_stride"] == row
    assert call.values["linear_iter_params.token_count"] == call.problem.max_k_len == TOKENS


def test_a_block_call_bounds_a_sequence_by_all_blocks() -> None:
    call = checked("block", given=numbers("block", layer_offset=1 << 40))
    assert call.problem.max_k_len == BLOCKS * BLOCK_LEN
    assert call.values["block_iter_params.layer_offset"] == 1 << 40
    assert call.values["block_iter_params.block_len"] == BLOCK_LEN


def test_rows_of_a_block_table_may_be_those_of_a_wider_one() -> None:
    table = array(BATCH, MAX_BLOCKS, dtype="i32", strides=(64, 1))
    call = checked(block_table=table)
    assert call.values["paged_iter_params.max_blocks"] == 64
    assert call.problem.max_k_len == MAX_BLOCKS * BLOCK_LEN


def test_a_block_table_without_columns_has_no_entry_whatever_lies_between_its_rows() -> None:
    call = checked(block_table=array(BATCH, 0, dtype="i32", strides=(64, 1)))
    assert call.values["paged_iter_params.max_blocks"] == 0
    assert call.problem.max_k_len == 0


def test_given_bounds_are_taken_and_may_exceed_what_the_arrays_hold() -> None:
    call = checked(given=Numbers(max_q_len=7, max_k_len=1_000_000))
    assert (call.problem.max_q_len, call.problem.max_k_len) == (7, 1_000_000)


def test_a_batch_of_nothing_is_legal() -> None:
    q, sums = array(0, HEADS, D), ints(1)
    call = checked(q=q, cu_q_len=sums, cu_k_len=sums, block_table=ints(0, MAX_BLOCKS))
    assert (call.problem.token_num, call.problem.batch_size) == (0, 0)


def test_strides_of_axes_of_one_element_mean_nothing() -> None:
    one = array(1, HEADS, D, strides=(3, D, 1))
    assert checked(q=one).values["stride"] == 0


def test_bf16_bits_in_16_bit_integers_are_bf16() -> None:
    bits = replace(array(TOKENS, HEADS, D), dtype="u16")
    assert checked(q=bits).problem.token_num == TOKENS


REFUSALS: list[tuple[str, str, Any, str]] = [
    ("paged", "q", array(TOKENS, HEADS + 1, D), r"q has shape \[100, 9, 128\]: it must be"),
    ("paged", "q", array(TOKENS, HEADS * D), r"\[token_num, num_heads, head_dim\] = \[any, 8, 128"),
    ("paged", "q", array(TOKENS, HEADS, D, dtype="f16"), "q has dtype f16: this Attention takes"),
    ("paged", "q", array(TOKENS, HEADS, D, strides=(D, TOKENS * D, 1)), "heads of a token must"),
    ("paged", "q", array(TOKENS, HEADS, D, strides=(HEADS * D + 4, D, 1)), "multiples of 8"),
    ("paged", "q", array(TOKENS, HEADS, D, strides=(HEADS * D, 0, 1)), "heads of a token must"),
    ("paged", "q", array(2**31, HEADS, D), "token_num, the first extent of q, is 2147483648"),
    ("paged", "q", None, "q is missing"),
    ("paged", "k", None, "k is missing"),
    ("paged", "k", array(BLOCKS, BLOCK_LEN, HEADS, D), r"num_kv_heads, head_dim\] = \[any, any, 2"),
    ("paged", "k", array(BLOCKS, 0, KV_HEADS, D), "v has shape"),
    ("paged", "v", array(BLOCKS, BLOCK_LEN, KV_HEADS, D), "v has shape"),
    ("paged", "v", array(BLOCKS, 8, KV_HEADS, DV), "v has shape"),
    ("linear", "v", array(499, KV_HEADS, DV), "v has shape"),
    ("linear", "k", array(500, KV_HEADS, D, strides=(256, 1, 2)), "last stride 1"),
    ("linear", "k", array(500, KV_HEADS, D, strides=(260, 132, 1)), "multiples of 8 elements"),
    ("paged", "cu_q_len", ints(0), "cu_q_len is empty"),
    ("paged", "cu_q_len", array(BATCH + 1, dtype="i64"), "cu_q_len has dtype i64: it must be i32"),
    ("paged", "cu_q_len", array(BATCH + 1, dtype="i32", strides=(2,)), "must lie back to back"),
    ("paged", "cu_k_len", ints(BATCH), r"cu_k_len has shape \[3\]"),
    ("paged", "finished", ints(BATCH), "finished has dtype i32: it must be bool or u8"),
    ("paged", "finished", array(BATCH + 1, dtype="bool"), "finished has shape"),
    ("paged", "block_table", None, "block_table is missing"),
    ("paged", "block_table", ints(BATCH + 1, MAX_BLOCKS), "block_table has shape"),
    ("paged", "block_table", array(BATCH, MAX_BLOCKS, dtype="i64"), "block_table has dtype i64"),
    ("paged", "block_table", array(BATCH, 9, dtype="i32", strides=(1, 3)), "entries of a row"),
    ("paged", "block_table", array(BATCH, 9, dtype="i32", strides=(0, 1)), "must not overlap"),
    (
        "paged",
        "block_ptrs",
        array(9, dtype="i64"),
        "reads a paged cache, which takes k, v, block_t",
    ),
    ("linear", "block_table", ints(BATCH, MAX_BLOCKS), "reads a linear cache, which takes k, v"),
    ("block", "k", array(500, KV_HEADS, D), "reads a block cache"),
    ("block", "block_ptrs", array(9, dtype="i32"), "block_ptrs has dtype i32: it must be i64"),
    ("block", "cu_block_nums", None, "cu_block_nums is missing"),
    ("paged", "out", array(TOKENS, HEADS, D), r"out has shape \[100, 8, 128\]"),
    ("paged", "out", array(TOKENS, HEADS, DV, dtype="f32"), "out has dtype f32"),
    ("paged", "out", array(TOKENS, HEADS, DV, strides=(HEADS * D, D, 1)), "must lie back to back"),
    ("paged", "out", replace(array(TOKENS, HEADS, DV), readonly=True), "out is read-only"),
    ("paged", "lse", array(TOKENS, HEADS, dtype="f32"), r"num_heads, token_num\] = \[8, 100\]"),
    ("paged", "lse", array(HEADS, TOKENS), "lse has dtype bf16: it must be f32"),
]


@pytest.mark.parametrize(
    ("cache", "name", "value", "message"),
    REFUSALS,
    ids=[f"{name}-{index}" for index, (_, name, _, _) in enumerate(REFUSALS)],
)
def test_a_wrong_array_is_refused_by_its_name(
    cache: str, name: str, value: Any, message: str
) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ArgumentError, match=message) as caught:
        checked(cache, **changes)
    named = "v" if message == "v has shape" else name
    assert caught.value.argument == named
    assert named in str(caught.value)


def test_a_pool_of_empty_blocks_is_refused() -> None:
    k, v = array(BLOCKS, 0, KV_HEADS, D), array(BLOCKS, 0, KV_HEADS, DV)
    assert refusal(k=k, v=v).argument == "k"


@pytest.mark.parametrize(
    ("cache", "changes"),
    [
        ("paged", {"max_q_len": -1}),
        ("paged", {"max_k_len": 2**31}),
        ("paged", {"max_k_len": 1.5}),
        ("paged", {"max_q_len": True}),
        ("paged", {"block_len": 16}),
        ("paged", {"layer_offset": 0}),
        ("linear", {"layer_offset": 16}),
        ("block", {"block_len": 0}),
        ("block", {"block_len": None}),
        ("block", {"layer_offset": 8}),
        ("block", {"layer_offset": "16"}),
        ("block", {"layer_offset": 16.0}),
        ("block", {"layer_offset": -16}),
    ],
    ids=str,
)
def test_a_wrong_number_is_refused_by_its_name(cache: str, changes: dict[str, Any]) -> None:
    error = refusal(cache, given=numbers(cache, **changes))
    assert [error.argument] == list(changes)
    assert error.argument in str(error)


def test_arrays_on_another_gpu_or_in_host_memory_are_refused() -> None:
    views = arguments()
    check_devices(views, 0)
    with pytest.raises(ArgumentError, match="v is in the memory of GPU 1, and this call runs on"):
        check_devices(views | {"v": ArrayView((1,), (1,), "bf16", 1)}, 0)
    with pytest.raises(ArgumentError, match="cu_q_len is in host memory"):
        check_devices(views | {"cu_q_len": ArrayView((1,), (1,), "i32", -1)}, 0)


def test_a_workspace_is_measured_in_bytes_of_any_type() -> None:
    assert array_bytes(array(10, dtype="u8")) == 10
    assert array_bytes(array(10, dtype="f32")) == 40
    assert array_bytes(array(10, dtype="bool")) == 10
    check_workspace(array(25, dtype="f32"), 100)
    with pytest.raises(ArgumentError, match="workspace has 96 bytes, and this call needs 100"):
        check_workspace(array(24, dtype="f32"), 100)
    with pytest.raises(ArgumentError, match="must lie back to back"):
        check_workspace(array(100, dtype="f32", strides=(2,)), 100)


def decoding(kv_dtype: str = "same", ranks: Ranks = ONE_RANK, **changes: Any) -> Call:
    """A checked call of mode decode that brings new rows along."""
    chosen = settings(head_dim_v=D, mode="decode", kv_dtype=kv_dtype, ranks=ranks)
    width, dtype = (D, "bf16") if kv_dtype == "same" else (D, "u8")
    pool = array(BLOCKS, BLOCK_LEN, KV_HEADS, width, dtype=dtype)
    new = array(BATCH, KV_HEADS, D, strides=(3 * KV_HEADS * D, D, 1))
    views = arguments() | {"q": array(BATCH, HEADS, D), "k": pool, "v": pool}
    return check_call(chosen, views | {"k_new": new, "v_new": new} | changes, Numbers(max_k_len=9))


def test_new_rows_of_a_decode_call_add_their_strides() -> None:
    values = decoding().values
    assert values["k_stride"] == values["v_stride"] == 3 * KV_HEADS * D
    assert "k_stride" not in decoding(k_new=None, v_new=None).values


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"v_new": None}, "v_new", "v_new is missing"),
        ({"k_new": array(BATCH + 1, KV_HEADS, D)}, "v_new", "give both the same"),
        ({"q": array(BATCH - 1, HEADS, D)}, "k_new", "k_new has 3 tokens, and q has 2"),
        ({"v_new": array(BATCH, HEADS, D)}, "v_new", "it must be"),
        ({"k_new": array(BATCH, KV_HEADS, D, dtype="f16")}, "k_new", "takes bf16"),
        ({"offset_q": ints(BATCH)}, "offset_q", "given with k_new"),
        ({"ranks": Ranks(rank=0, size=2)}, "k_new", "spread over 2 ranks"),
    ],
)
def test_new_rows_that_do_not_fit_a_decode_call_are_refused(
    changes: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(ArgumentError, match=reason) as caught:
        decoding(**changes)
    assert caught.value.argument == field


def test_new_rows_are_refused_where_the_cache_is_read_only() -> None:
    pool = array(BLOCKS, BLOCK_LEN, KV_HEADS, D)
    with pytest.raises(ArgumentError, match="k is read-only"):
        decoding(k=replace(pool, readonly=True))


def test_prefill_refuses_new_rows() -> None:
    new = array(TOKENS, KV_HEADS, D)
    error = refusal(k_new=new, v_new=new)
    assert (error.argument, "write them with a CacheWriter" in str(error)) == ("k_new", True)
