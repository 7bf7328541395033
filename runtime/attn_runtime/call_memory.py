# SPDX-License-Identifier: Apache-2.0
"""Calls that a thread has made before, so that a repeated one is checked by a comparison alone."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

_Call = TypeVar("_Call")
_KEPT: Final = 1024
"""Kinds of calls that a thread remembers; the oldest is forgotten first."""

CallKey = tuple[Sequence[Any], Hashable, Hashable]
"""All that a call is checked by: the keys of its arrays, its numbers, its context."""


class CallMemory(Generic[_Call]):
    """The calls of one thread, by their keys; the last one is found without hashing."""

    __slots__ = ("_calls", "last_call", "last_key")

    def __init__(self) -> None:
        self._calls: dict[Any, _Call] = {}
        self.last_key: CallKey | None = None
        self.last_call: _Call

    def recall(self, key: CallKey) -> _Call | None:
        """The call of a key, if it is kept."""
        keys, numbers, context = key
        try:
            return self._calls.get((tuple(keys), numbers, context))
        except TypeError:  # a number that is none, such as a list: refused with its name later
            return None

    def keep(self, key: CallKey, call: _Call) -> None:
        """Make a call the last one, and remember it as long as there is room."""
        keys, numbers, context = key
        kept = (tuple(keys), numbers, context)
        if kept not in self._calls and len(self._calls) >= _KEPT:
            del self._calls[next(iter(self._calls))]
        self._calls[kept] = call
        self.last_key, self.last_call = key, call


class CallMemories(Generic[_Call]):
    """A memory for each thread: a launch writes to a buffer that all its runs share."""

    __slots__ = ("_local",)

    def __init__(self) -> None:
        self._local = threading.local()

    def own(self) -> CallMemory[_Call]:
        """That of this thread."""
        try:
            memory: CallMemory[_Call] = self._local.memory
        except AttributeError:
            memory = self._local.memory = CallMemory()
        return memory
