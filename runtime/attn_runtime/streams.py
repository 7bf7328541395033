# SPDX-License-Identifier: Apache-2.0
"""Streams of any library as the integer that the driver knows them by."""

from __future__ import annotations

from typing import Any

from attn_runtime.errors import ArgumentError

LEGACY_DEFAULT = 1
"""CU_STREAM_LEGACY: the default stream by a name that is not 0, which DLPack asks for."""


def stream_handle(stream: Any) -> int:
    """The handle of an int, a torch, PyCUDA, CuPy or cuda.core stream; None is the default stream.

    Raises ArgumentError for anything else.
    """
    if stream is None:
        return 0
    if isinstance(stream, int) and not isinstance(stream, bool):
        if stream < 0:
            raise ArgumentError("stream", f"stream is {stream}: a handle is 0 or above")
        return stream
    for name in ("cuda_stream", "handle", "ptr"):  # torch; PyCUDA, cuda.core, numba; CuPy
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(getattr(handle, "value", handle) or 0)  # numba keeps a ctypes pointer
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    raise ArgumentError(
        "stream",
        f"stream is of type {type(stream).__name__}: give an int handle, or a stream of torch, "
        "PyCUDA, CuPy or cuda.core, or leave it out for the caller's current one",
    )


def is_pycuda_stream(stream: Any) -> bool:
    """True for a stream that PyCUDA made, on which PyCUDA launches."""
    return type(stream).__module__.partition(".")[0] == "pycuda"
