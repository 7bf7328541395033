# SPDX-License-Identifier: Apache-2.0
"""Events and streams by their handles, whatever library made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attn_runtime import driver

PAUSE_MEMSETS: Final = 8
"""One takes about a microsecond, and an exchange of NCCL some to begin."""


class Event:
    """A point in the work of a stream; keeps no time. Made in the current context."""

    __slots__ = ("_handle", "_is_recorded")

    def __init__(self) -> None:
        cuda = driver.bindings()
        self._is_recorded = False
        flag = int(cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._handle = driver.call("cuEventCreate", cuda.cuEventCreate(flag))

    def __del__(self) -> None:
        driver.bindings().cuEventDestroy(self._handle)

    def record(self, stream: int) -> None:
        """Stand behind all that the stream has been given so far."""
        driver.call("cuEventRecord", driver.bindings().cuEventRecord(self._handle, stream))
        self._is_recorded = True

    def hold(self, stream: int) -> None:
        """Let what the stream is given from now on wait for the event."""
        driver.call(
            "cuStreamWaitEvent", driver.bindings().cuStreamWaitEvent(stream, self._handle, 0)
        )

    def is_done(self) -> bool:
        """Whether the work in front of the event has ended; False while it stands nowhere yet.
        Raises DriverError if the work failed."""
        if not self._is_recorded:
            return False
        cuda = driver.bindings()
        status = cuda.cuEventQuery(self._handle)
        if status[0] == cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        driver.call("cuEventQuery", status)
        return True


class Pause:
    """Some microseconds of a stream, in which what another one was given at the same time begins. A
    kernel that fills the machine would go first, since it waits for no other stream, and leave no
    multiprocessor until it ends. Made in the current context, until the process ends."""

    def __init__(self) -> None:
        self._word = int(driver.call("cuMemAlloc", driver.bindings().cuMemAlloc(4)))

    def put_into(self, stream: int) -> None:
        """The stream writes a word, some times; also where it is captured."""
        memset = driver.bindings().cuMemsetD32Async
        for _ in range(PAUSE_MEMSETS):
            driver.call("cuMemsetD32Async", memset(self._word, 0, 1, stream))


def thread_entry() -> Callable[[], None]:
    """What another thread calls first to ask about events of the context that is current here.
    While any stream is captured, a thread that is not relaxed about it may not even ask."""
    cuda, context = driver.bindings(), driver.current_context()
    relaxed = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED

    def enter() -> None:
        driver.call("cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))
        driver.call(
            "cuThreadExchangeStreamCaptureMode", cuda.cuThreadExchangeStreamCaptureMode(relaxed)
        )

    return enter


def make_stream() -> int:
    """A stream of the current context that waits for no other, of the highest priority: what is
    exchanged goes before the kernels that will wait for it. It lives until the process ends."""
    cuda = driver.bindings()
    _, highest = driver.call("cuCtxGetStreamPriorityRange", cuda.cuCtxGetStreamPriorityRange())
    flag = int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
    result = cuda.cuStreamCreateWithPriority(flag, highest)
    return int(driver.call("cuStreamCreateWithPriority", result))


def is_capturing(stream: int) -> bool:
    """Whether the stream is being captured into a graph: then nothing on it may be asked for."""
    cuda = driver.bindings()
    status, capturing = cuda.cuStreamIsCapturing(stream)
    return not status and capturing != cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
