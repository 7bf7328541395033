# SPDX-License-Identifier: Apache-2.0
"""Which device memory launches count in, where there is no device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from attn_runtime import counters


def test_launches_of_fewer_counters_share_those_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph capture can allocate none: the largest that were reserved serve all calls."""
    made = []

    def allocate(context: Any, ints: int) -> tuple[int, int]:
        made.append(ints)
        return context.handle, ints

    monkeypatch.setattr(counters, "Counters", allocate)
    monkeypatch.setattr(counters, "_known", {})
    one, other = SimpleNamespace(handle=1), SimpleNamespace(handle=2)
    assert counters.counters_of(one, 1024) == (1, 1024)
    assert counters.counters_of(one, 256) == (1, 1024)
    assert counters.counters_of(one, 2048) == (1, 2048)
    assert counters.counters_of(one, 1024) == (1, 1024)
    assert counters.counters_of(other, 256) == (2, 256)
    assert counters.counters_of(one) == (1, 1)  # there are more blocks of a single one
    assert made == [1024, 2048, 256, 1]
