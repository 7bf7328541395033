# SPDX-License-Identifier: Apache-2.0
"""Launches as a CUDA graph: what a serving engine replays, and free of the host's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attn_runtime import driver
from attn_runtime.driver import call


class Graph:
    """Launches that were captured on a stream of their own. The context must be current."""

    def __init__(self, enqueue: Callable[[int], object]) -> None:
        """Capture what `enqueue` launches on the stream that it is given, by its handle."""
        cuda = driver.bindings()
        relaxed = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        own = driver.pycuda().Stream()
        call("cuStreamBeginCapture", cuda.cuStreamBeginCapture(own.handle, relaxed))
        try:
            enqueue(own.handle)
        finally:
            graph = call("cuStreamEndCapture", cuda.cuStreamEndCapture(own.handle))
        self._ready: Any = call("cuGraphInstantiate", cuda.cuGraphInstantiate(graph, 0))
        call("cuGraphDestroy", cuda.cuGraphDestroy(graph))
        self._launch = cuda.cuGraphLaunch

    def __call__(self) -> None:
        """Replay on the default stream."""
        status = self._launch(self._ready, 0)
        if status[0]:
            call("cuGraphLaunch", status)
