# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a ring have: every token once, and the rows that the kernels will read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from attn_runtime.problem import KeySharding
from attn_runtime.ring import RingLayout
from attn_runtime.shards import shards_of

SIZES = (1, 2, 3, 8, 64)
LENS = [(1,), (2, 0, 1), (64, 129, 700), (1000, 3), (128, 256)]


def layouts(lens: tuple[int, ...], size: int) -> list[RingLayout]:
    return [RingLayout(lens, size, rank) for rank in range(size)]


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_token_is_on_one_rank(lens: tuple[int, ...], size: int) -> None:
    tokens = [token for layout in layouts(lens, size) for token in layout.tokens()]
    assert sorted(tokens) == list(range(sum(lens)))


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_rank_are_its_zigzag_keys_in_order(lens: tuple[int, ...], size: int) -> None:
    for layout in layouts(lens, size):
        starts = np.cumsum([0, *lens])
        expected = [
            start + shards_of(KeySharding.ZIGZAG, size, layout.rank, 1, length).positions(length)
            for start, length in zip(starts, lens, strict=False)
        ]
        assert layout.tokens() == [int(token) for own in expected for token in own]
        assert layout.rows(layout.rank) == len(layout.tokens()) <= layout.most_rows


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_queries_of_a_call_stand_where_their_tokens_do(lens: tuple[int, ...], size: int) -> None:
    starts = np.cumsum([0, *lens])
    for layout in layouts(lens, size):
        tokens = layout.tokens()
        for at, ((begin, end), first) in enumerate(
            zip(pairwise(layout.cu_q_len), layout.offset_q, strict=True)
        ):
            positions = [token - starts[at // 2] for token in tokens[begin:end]]
            assert positions == list(range(first, first + end - begin))


@pytest.mark.parametrize("lens", LENS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_keys_of_a_call_begin_where_their_sequence_does(lens: tuple[int, ...], size: int) -> None:
    whole = layouts(lens, size)
    for layout in whole:
        lengths = [end - begin for begin, end in pairwise(layout.cu_k_len)]
        assert lengths == [length for length in lens for _ in range(2)]
        for source in range(size):
            rows, keys = layout.cu_rows(source), whole[source].tokens()
            assert len(rows) == 2 * len(lens) + 1 and rows[-1] == len(keys)
            for at in range(2 * len(lens)):
                own = [
                    key for key in keys if np.searchsorted(np.cumsum(lens), key, "right") == at // 2
                ]
                assert rows[at] == (keys.index(own[0]) if own else rows[at])


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
