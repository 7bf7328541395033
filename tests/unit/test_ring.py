# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a ring have: every token once, and the rows that the kernels will read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from attn_runtime.errors import ArgumentError
from attn_runtime.problem import KeySharding
from attn_runtime.ring import RingAttention
from attn_runtime.ring_layout import RingLayout
from attn_runtime.shards import shards_of

SIZES = (1, 2, 3, 8, 64)
LENS = [(1,), (2, 0, 1), (64, 129, 700), (1000, 3), (128, 256)]


CUTS = [(KeySharding.ZIGZAG, 1), (KeySharding.CONTIGUOUS, 1), (KeySharding.INTERLEAVED, 7)]


def layouts(lens: tuple[int, ...], size: int, cut: tuple[KeySharding, int]) -> list[RingLayout]:
    return [RingLayout(lens, size, rank, *cut) for rank in range(size)]


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_token_is_on_one_rank(
    lens: tuple[int, ...], size: int, cut: tuple[KeySharding, int]
) -> None:
    tokens = [token for layout in layouts(lens, size, cut) for token in layout.tokens()]
    assert sorted(tokens) == list(range(sum(lens)))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_group_of_one_has_each_sequence_in_one_piece(cut: tuple[KeySharding, int]) -> None:
    (layout,) = layouts((5, 1, 300), 1, cut)
    assert [piece.tokens for piece in layout.pieces(0)] == [5, 1, 300]


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_rows_of_a_rank_are_its_keys_in_order(
    lens: tuple[int, ...], size: int, cut: tuple[KeySharding, int]
) -> None:
    sharding, chunk = cut
    for layout in layouts(lens, size, cut):
        starts = np.cumsum([0, *lens])
        expected = [
            start + shards_of(sharding, size, layout.rank, chunk, length).positions(length)
            for start, length in zip(starts, lens, strict=False)
        ]
        assert layout.tokens() == [int(token) for own in expected for token in own]
        assert layout.rows(layout.rank) == len(layout.tokens()) <= layout.most_rows


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_queries_of_a_call_stand_where_their_tokens_do(
    lens: tuple[int, ...], size: int, cut: tuple[KeySharding, int]
) -> None:
    starts = np.cumsum([0, *lens])
    for layout in layouts(lens, size, cut):
        tokens = layout.tokens()
        for (begin, end), first, piece in zip(
            pairwise(layout.cu_q_len), layout.offset_q, layout.pieces(layout.rank), strict=True
        ):
            positions = [token - starts[piece.sequence] for token in tokens[begin:end]]
            assert positions == list(range(first, first + end - begin))
            assert end - begin <= layout.max_q_len


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_keys_of_a_call_begin_where_their_sequence_does(
    lens: tuple[int, ...], size: int, cut: tuple[KeySharding, int]
) -> None:
    whole = layouts(lens, size, cut)
    all_keys = [np.array(layout.tokens()) for layout in whole]
    ends = np.cumsum(lens)
    for layout in whole:
        of = [piece.sequence for piece in layout.pieces(layout.rank)]
        assert sorted({*of}) == list(range(len(lens)))
        assert [end - begin for begin, end in pairwise(layout.cu_k_len)] == [lens[b] for b in of]
        for source in range(size):
            rows, sequences = (
                layout.cu_rows(source),
                np.searchsorted(ends, all_keys[source], "right"),
            )
            assert len(rows) == len(of) + 1 and rows[-1] == len(sequences)
            assert rows[:-1] == [int(np.searchsorted(sequences, b)) for b in of]


@pytest.mark.parametrize("size", SIZES)
def test_causal_work_of_a_step_is_the_same_on_every_rank(size: int) -> None:
    """Pairs of a query and a key that it sees, of lengths that divide evenly."""
    length = 2 * size * 6
    shards = [shards_of(KeySharding.ZIGZAG, size, rank, 1, length) for rank in range(size)]
    for step in range(size):
        work = set()
        for rank in range(size):
            positions = shards[rank].positions(length)
            work.add(int(shards[(rank - step) % size].keys_before(positions + 1).sum()))
        assert len(work) == 1, step


@pytest.mark.parametrize("name", ["mode", "cache", "kv_dtype", "context_parallel"])
def test_what_a_ring_decides_itself_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} was given: .* leave mode, cache") as refused:
        RingAttention(num_heads=8, num_kv_heads=2, head_dim=128, **{name: "other"})
    assert refused.value.argument == name
