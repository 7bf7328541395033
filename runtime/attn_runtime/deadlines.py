# SPDX-License-Identifier: Apache-2.0
"""Exchanges that are under way, and what happens when one takes too long: no rank waits forever."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from attn_runtime.errors import ContextParallelError

POLL_S: Final = 0.02
ASK_S: Final = 0.25


class Point(Protocol):
    """A point in the work of a stream (events.Event)."""

    def is_done(self) -> bool:
        """Whether the work in front of it has ended."""


@dataclass(slots=True)
class _Exchange:
    what: str
    index: int
    begin: Point
    end: Point
    began: float | None = None
    """When `begin` was first seen to be done: what stands in front of an exchange may take long."""


class Deadlines:
    """Watches exchanges from a thread of its own. One that has not ended `timeout_s` after it could
    begin fails them all: `abort` is called once, so that what waits on the GPU ends, and every
    later `check` raises ContextParallelError.

    So does one that another rank aborted, which may well end, with anything for a result: NCCL's
    kernels go on to their last step then. `is_aborted` asks for it: now and then while exchanges
    are under way, and whenever `ask` or `wait` answer for what has ended."""

    def __init__(
        self,
        timeout_s: float,
        abort: Callable[[], None],
        who: str,
        enter_thread: Callable[[], None] = lambda: None,
        is_aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.timeout_s = timeout_s
        self._abort, self._who, self._enter_thread = abort, who, enter_thread
        self._is_aborted = is_aborted
        self._asked = 0.0
        self._pending: deque[_Exchange] = deque()
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self._count = 0

    def expect(self, what: str, begin: Point, end: Point) -> None:
        """Watch an exchange that lies between two points of a stream."""
        with self._changed:
            self._pending.append(_Exchange(what, self._count, begin, end))
            self._count += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="attn-deadlines", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise ContextParallelError if an exchange is known to have failed."""
        if self._failure is not None:
            raise ContextParallelError(self._failure)

    def ask(self) -> None:
        """Raise ContextParallelError if an exchange has failed, here or on another rank."""
        self._ask()
        self.check()

    def wait(self) -> None:
        """Until every exchange has ended; raises ContextParallelError if one fails."""
        with self._changed:
            while self._pending and self._failure is None:
                self._changed.wait(POLL_S)
        self.ask()

    def _watch(self) -> None:
        self._enter_thread()
        while True:
            with self._changed:
                if not self._pending:
                    self._thread = None  # the next exchange starts another
                    return
                first = self._pending[0]
            if time.monotonic() - self._asked > ASK_S:
                self._ask()
            if self._failure is not None:
                return
            if self._has_ended(first):
                with self._changed:
                    self._pending.popleft()
                    self._changed.notify_all()
            else:
                time.sleep(POLL_S)

    def _has_ended(self, exchange: _Exchange) -> bool:
        """Whether it has; one that is late, or broken, becomes the failure."""
        try:
            if exchange.end.is_done():
                return True
            if exchange.began is None and exchange.begin.is_done():
                exchange.began = time.monotonic()
        except Exception as error:  # the context is broken: say so in the caller's thread
            self._fail(f"{_name(exchange)} failed: {error}")
            return False
        if exchange.began is not None and time.monotonic() - exchange.began > self.timeout_s:
            self._fail(f"{_name(exchange)} has not ended {self.timeout_s:g} s after it could begin")
        return False

    def _ask(self) -> None:
        """A failure, if another rank says that it aborted."""
        self._asked = time.monotonic()
        if self._failure is None and self._is_aborted():
            self._fail(f"another rank aborted the exchanges up to {self._count}")

    def _fail(self, what: str) -> None:
        with self._changed:
            if self._failure is not None:
                return  # the other thread was first
            self._failure = (
                f"{self._who}: {what}. Another rank failed, makes other calls than this one, or "
                "came later than timeout_s allows; the communicator was aborted, and what the "
                "exchanges under way left is not to be used: build a new one, and a "
                "ContextParallel over it"
            )
        try:
            self._abort()
        except Exception as error:
            self._failure += f" (aborting it failed, too: {error})"
        with self._changed:
            self._changed.notify_all()


def _name(exchange: _Exchange) -> str:
    return f"exchange {exchange.index} ({exchange.what})"
