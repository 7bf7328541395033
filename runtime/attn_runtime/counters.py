# SPDX-License-Identifier: Apache-2.0
"""Device memory in which the CTAs of launches count."""

from __future__ import annotations

import threading
from typing import Final

from attn_runtime import driver
from attn_runtime.driver import Context, call
from attn_runtime.streams import LEGACY_DEFAULT

COUNTERS: Final = 1 << 16
"""Of a device: more than there are streams and graphs at a time."""
COUNTER_BLOCKS: Final = 1 << 10
"""The same, where a launch takes many counters."""

_lock = threading.Lock()
_known: dict[tuple[int, int], Counters] = {}


class Counters:
    """Blocks of `ints` of device memory in which the CTAs of a launch count, zeroed once. They
    reset themselves, so that one serves all launches of a stream; a graph, which may be replayed
    beside the streams that it was captured from, has one for each of them."""

    def __init__(self, context: Context, ints: int) -> None:
        cuda = driver.bindings()
        self._block_bytes = 4 * ints
        self._blocks = COUNTERS if ints == 1 else COUNTER_BLOCKS
        count = ints * self._blocks
        with context:
            self._base = int(call("cuMemAlloc", cuda.cuMemAlloc(4 * count)))
            _zero(self._base, count)
        self._ask_capturing = cuda.cuStreamIsCapturing
        self._idle = cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        self._of_stream: dict[int, int] = {}
        self._of_graph: tuple[int, dict[int, int]] = (0, {})
        self._taken = 0

    def address(self, stream: int) -> int:
        """The block for a launch on a stream, by its handle. The context must be current."""
        of_stream = self._of_stream
        if stream > LEGACY_DEFAULT:  # no other stream can be captured
            status, capturing = self._ask_capturing(stream)
            if not status and capturing != self._idle:
                of_stream = self._of_streams_of_graph(stream)
        found = of_stream.get(stream)
        if found is None:
            found = of_stream[stream] = self._next()
        return found

    def _of_streams_of_graph(self, stream: int) -> dict[int, int]:
        """The blocks of the graph that a stream is captured into: of the last one that was seen."""
        info = call("cuStreamGetCaptureInfo", driver.bindings().cuStreamGetCaptureInfo(stream))
        with _lock:
            if self._of_graph[0] != int(info[1]):
                self._of_graph = (int(info[1]), {})
            return self._of_graph[1]

    def _next(self) -> int:
        with _lock:
            self._taken += 1
            return self._base + self._block_bytes * (self._taken % self._blocks)


def _zero(address: int, ints: int) -> None:
    """Zeros that every stream sees from now on: one that waits for no other would not wait for a
    memset of the default stream."""
    cuda = driver.bindings()
    flag = int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
    stream = call("cuStreamCreate", cuda.cuStreamCreate(flag))
    call("cuMemsetD32Async", cuda.cuMemsetD32Async(address, 0, ints, stream))
    call("cuStreamSynchronize", cuda.cuStreamSynchronize(stream))
    call("cuStreamDestroy", cuda.cuStreamDestroy(stream))


def counters_of(context: Context, ints: int = 1) -> Counters:
    """The counters of a device for launches that take `ints` of them, a power of two: the smallest
    that suffice. Allocated where there are none, until the process ends."""
    with _lock:
        own = [size for handle, size in _known if handle == context.handle]
        enough = min((size for size in own if size >= ints > 1), default=ints)
        key = (context.handle, enough)
        if key not in _known:
            _known[key] = Counters(context, enough)
        return _known[key]


def counter_block(count: int) -> int:
    """Ints of a block that holds `count` counters."""
    return 1 << (count - 1).bit_length()
