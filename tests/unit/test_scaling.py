# SPDX-License-Identifier: Apache-2.0
"""The model of scaling says what its formulas say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scaling import RANKS, Figures, decode_ms, exchange_ms, prefill_ms, table

FREE = Figures(190, 1.0, 1e12, 0.0, fixed_us=0, memory_gbs=1e12, link_us=0, hop_us=0)
FREE = replace(FREE, network_gbs=1e12, network_us=0)
REAL = Figures(190, 1.0, 200, 25)


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_that_exchange_for_free_divide_the_time(ranks: int) -> None:
    assert prefill_ms(FREE, ranks) == pytest.approx(190 / ranks, rel=1e-4)
    assert decode_ms(FREE, ranks) == pytest.approx(1.0 / ranks, rel=1e-4)


def test_one_rank_exchanges_nothing() -> None:
    assert prefill_ms(REAL, 1) == 190
    assert decode_ms(REAL, 1) == 1.0


def test_a_ring_is_bound_by_its_links_once_its_steps_are_short() -> None:
    slow = replace(REAL, link_gbs=1.0)
    assert prefill_ms(slow, 4) > 3 * exchange_ms(slow, 4) > 190 / 4


def test_links_between_hosts_bind_a_ring_that_leaves_its_host() -> None:
    assert exchange_ms(REAL, 16) > exchange_ms(REAL, 8) / 2


def test_the_table_has_a_row_for_each_number_of_ranks() -> None:
    assert len(table(REAL).splitlines()) == 2 + len(RANKS)
