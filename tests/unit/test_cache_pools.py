# SPDX-License-Identifier: Apache-2.0
"""How KVCache hands out blocks, over memory that is no GPU's."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from attn_runtime import cache_pools
from attn_runtime.cache_pools import KVCache
from attn_runtime.errors import ArgumentError


class HostMemory:
    """numpy in place of a GPU's memory."""

    def __init__(self, ordinal: int | None) -> None:
        pass

    def pool(self, shape: tuple[int, ...], dtype: str) -> Any:
        return np.zeros(shape, "u1" if dtype == "u8" else "u2").swapaxes(1, 2)

    def ints(self, values: list[int], shape: tuple[int, ...] | None = None) -> Any:
        return np.array(values, np.int32).reshape(shape or (len(values),))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the writer was asked."""
    found: list[dict[str, Any]] = []
    for name in ("_TorchMemory", "_OwnMemory"):
        monkeypatch.setattr(cache_pools, name, HostMemory)
    monkeypatch.setattr(cache_pools.CacheWriter, "__call__", lambda *_, **call: found.append(call))
    return found


def cache_of(kv_dtype: str = "int8", blocks: int = 10) -> KVCache:
    return KVCache(block_count=blocks, num_kv_heads=2, head_dim=64, block_len=4, kv_dtype=kv_dtype)


def test_pools_have_the_shapes_that_attention_takes_and_rows_of_a_head_together(
    calls: list[dict[str, Any]],
) -> None:
    pools = cache_of("int4").pools
    assert pools["k"].shape == (10, 4, 2, 32)
    assert pools["v_pairs"].shape == (10, 4, 2, 2)
    assert pools["k"].strides == (2 * 4 * 32, 32, 4 * 32, 1)
    assert "k_pairs" not in cache_of("e4m3").pools


def test_scales_of_a_cache_are_told_to_whoever_reads_or_writes_it(
    calls: list[dict[str, Any]],
) -> None:
    cache = KVCache(
        block_count=2, num_kv_heads=2, head_dim=64, kv_dtype="e4m3", k_scale=0.5, v_scale=2.0
    )
    call = cache.append(["a"], None, None, [1])
    for told in (call, calls[-1]):
        assert (told["k_scale"], told["v_scale"]) == (0.5, 2.0)
    assert "k_scale" not in cache_of("e4m3").arguments([])


def test_memory_is_that_of_torch_where_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    class OtherMemory(HostMemory):
        pass

    monkeypatch.setattr(cache_pools, "_TorchMemory", OtherMemory)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert type(cache_of()._memory) is OtherMemory
    monkeypatch.delitem(sys.modules, "torch")
    assert type(cache_of()._memory) is HostMemory


def test_appending_hands_out_blocks_and_tells_lengths(calls: list[dict[str, Any]]) -> None:
    cache = cache_of()
    cache.append(["a", "b"], None, None, [5, 1])
    call = cache.append(["b", "a"], None, None, [4, 3])
    assert call["cu_q_len"].tolist() == [0, 4, 7]
    assert call["cu_k_len"].tolist() == [0, 5, 13]
    assert (call["max_q_len"], call["max_k_len"]) == (4, 8)
    table = call["block_table"]
    assert table.shape == (2, 2)
    assert len(set(table.ravel().tolist())) == 4
    assert calls[-1]["block_table"] is table
    assert (cache.length("a"), cache.length("c")) == (8, 0)


def test_rows_that_are_not_written_are_arguments_of_the_decode_call(
    calls: list[dict[str, Any]],
) -> None:
    cache, rows = cache_of(), np.zeros((2, 2, 64), np.uint16)
    call = cache.append(["a", "b"], rows, rows, [1, 1], write=False)
    assert call["k_new"] is rows
    assert call["v_new"] is rows
    assert (cache.length("a"), calls) == (1, [])


def test_a_full_cache_refuses_before_it_writes_and_serves_again_after_a_release(
    calls: list[dict[str, Any]],
) -> None:
    cache = cache_of(blocks=2)
    cache.append(["a"], None, None, [8])
    with pytest.raises(ArgumentError, match="need 1 block of 4 tokens, and 0 of 2 are free"):
        cache.append(["b"], None, None, [1])
    assert len(calls) == 1
    assert cache.length("b") == 0
    cache.release("a")
    cache.append(["b"], None, None, [8])
    assert cache.length("a") == 0


def test_a_shared_prefix_is_the_same_blocks_and_new_tokens_go_elsewhere(
    calls: list[dict[str, Any]],
) -> None:
    cache = cache_of()
    cache.append(["a"], None, None, [10])
    assert cache.share_prefix("a", "b") == 8, "two whole blocks of 4 tokens"
    assert cache.share_prefix("a", "c", tokens=7) == 4
    call = cache.append(["a", "b", "c"], None, None, [1, 3, 1])
    assert call["cu_k_len"].tolist() == [0, 11, 22, 27]
    a, b, c = call["block_table"].tolist()
    assert a[:2] == b[:2] and c[0] == a[0]
    assert len({a[2], b[2], c[1]} - set(a[:2])) == 3


def test_shared_blocks_are_free_when_nobody_has_them(calls: list[dict[str, Any]]) -> None:
    cache = cache_of(blocks=2)
    cache.append(["a"], None, None, [8])
    cache.share_prefix("a", "b")
    cache.release("a")
    with pytest.raises(ArgumentError, match="0 of 2 are free"):
        cache.append(["c"], None, None, [1])
    cache.release("b")
    cache.append(["c"], None, None, [8])


@pytest.mark.parametrize(("tokens", "blocks"), [(10, 3), (8, 2), (1, 1), (0, 0)])
def test_a_truncated_sequence_keeps_its_first_tokens_and_no_other_block(
    calls: list[dict[str, Any]], tokens: int, blocks: int
) -> None:
    cache = cache_of()
    cache.append(["a"], None, None, [11])
    before = cache.arguments(["a"])["block_table"].tolist()
    cache.truncate("a", tokens)
    assert cache.length("a") == tokens
    assert f"{10 - blocks} of 10 blocks free" in repr(cache)
    if blocks:
        assert cache.arguments(["a"])["block_table"].tolist() == [before[0][:blocks]]


def test_nothing_is_cut_or_shared_that_is_not_there(calls: list[dict[str, Any]]) -> None:
    cache = cache_of()
    cache.append(["a"], None, None, [8])
    with pytest.raises(ArgumentError, match="length is 9, and 'a' has 8 tokens in the cache"):
        cache.truncate("a", 9)
    with pytest.raises(ArgumentError, match="tokens is 9, and 'a' has 8 in the cache"):
        cache.share_prefix("a", "b", tokens=9)
    with pytest.raises(ArgumentError, match="'a' is in the cache, with 8 tokens"):
        cache.share_prefix("b", "a")
    cache.share_prefix("a", "b")
    with pytest.raises(ArgumentError, match="inside a block of 4 tokens that 'a' shares"):
        cache.truncate("a", 6)
    cache.truncate("a", 4)
    assert (cache.length("a"), cache.length("b")) == (4, 8)


def test_a_sequence_given_twice_is_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ArgumentError, match=r"\['a', 'a'\] names one twice: give each once"):
        cache_of().append(["a", "a"], None, None, [1, 1])


def test_every_sequence_has_a_number_of_new_tokens(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ArgumentError, match="q_lens has 1 entry, and there are 2 sequences"):
        cache_of().append(["a", "b"], None, None, [1])


def test_an_append_that_the_writer_refuses_leaves_lengths_as_they_were(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ArgumentError("k_new", "k_new has dtype f64")

    cache = cache_of()
    cache.append(["a"], None, None, [5])
    monkeypatch.setattr(cache_pools.CacheWriter, "__call__", refuse)
    with pytest.raises(ArgumentError, match="k_new has dtype f64"):
        cache.append(["a"], None, None, [2])
    assert cache.length("a") == 5


def test_a_cache_prints_as_its_layout_and_what_is_free(calls: list[dict[str, Any]]) -> None:
    cache = cache_of()
    cache.append(["a"], None, None, [5])
    assert repr(cache) == "<KVCache write_sm80_bf16_int8_d64_paged, 8 of 10 blocks free>"


def test_appending_to_nothing_is_a_batch_of_nothing(calls: list[dict[str, Any]]) -> None:
    call = cache_of().append([], None, None, [])
    assert call["cu_q_len"].tolist() == [0]
    assert (call["max_q_len"], call["max_k_len"]) == (0, 0)
