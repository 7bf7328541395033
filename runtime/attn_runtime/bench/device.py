# SPDX-License-Identifier: Apache-2.0
"""The GPU as a benchmark sees it: its own small kernels, arrays of normal data, timed calls.

Everything runs on the default stream, which is torch's current one unless a caller changed it: so
contenders of any library follow each other without waiting for one another's streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from attn_codegen.config import Dtype
from attn_runtime import driver
from attn_runtime.bench.timing import Call
from attn_runtime.cache import open_cache
from attn_runtime.compiler import Unit
from attn_runtime.driver import Context
from attn_runtime.function import Function

THREADS: Final = 256
PIECE_BYTES: Final = 32 * 1024
"""K and V of 64 tokens of one KV head at head_dim 128: what a paged cache scatters."""
FLUSH_BYTES: Final = 256 << 20
"""More than four times the largest L2."""

_LONGEST_PAUSE_NS: Final = 20_000_000
_SOURCE: Final = Path(__file__).with_name("kernels.cu")
_STRUCTS: Final[dict[str, list[tuple[str, str]]]] = {
    "attn_bench_fill": [("data", "u8"), ("count", "i8"), ("seed", "u4"), ("is_bf16", "i4")],
    "attn_bench_pause": [("nanoseconds", "i8")],
    "attn_bench_write": [("data", "u8"), ("count", "i8"), ("value", "u4")],
    "attn_bench_read": [
        ("data", "u8"),
        ("order", "u8"),
        ("piece_count", "i8"),
        ("piece_len", "i4"),
        ("sink", "u8"),
    ],
}
"""The argument structs of kernels.cu; numpy aligns them as C does."""


def unit() -> Unit:
    """The benchmark's kernels as one translation unit."""
    text = _SOURCE.read_text(encoding="utf-8")
    return Unit(
        name="attn_bench",
        symbol="attn_bench_read",
        file=_SOURCE.name,
        gencode="-gencode=arch=compute_80,code=sm_80",
        texts={_SOURCE.name: text},
    )


@dataclass(frozen=True, slots=True, eq=False)
class DeviceView:
    """The elements of an array in another shape; `offset` and `strides` in elements."""

    array: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        size = self.array.dtype.itemsize
        return {
            "shape": self.shape,
            "strides": tuple(size * stride for stride in self.strides),
            "typestr": self.array.dtype.str,
            "data": (int(self.array.gpudata) + size * self.offset, False),
            "version": 3,
        }


class Launcher:
    """One of the benchmark's kernels with its argument struct."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._struct = np.zeros((), np.dtype(_STRUCTS[function.symbol], align=True))
        self._pointer = np.array([self._struct.ctypes.data], np.uint64)

    def __call__(self, grid: int, threads: int = THREADS, stream: int = 0, **fields: int) -> None:
        for name, value in fields.items():
            self._struct[name] = value
        self._function.launch(grid, threads, 0, stream, self._pointer.ctypes.data)


class Bench:
    """A device with the benchmark's kernels. The context must be current in every call."""

    def __init__(self, context: Context) -> None:
        self.context = context
        cubin = open_cache().fetch(unit(), context.device.target).build.cubin
        self._kernels = {name: Launcher(Function(context, cubin, name)) for name in _STRUCTS}
        self._seed = 0

    @property
    def full_grid(self) -> int:
        """CTAs of the benchmark's kernels that fill the device."""
        return 8 * self.context.device.sm_count

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """An array with no values; `dtype` is a numpy name."""
        return driver.gpu_array(self.context, tuple(shape), dtype)

    def normal(self, shape: Sequence[int], dtype: Dtype) -> Any:
        """Normal values; bf16 as uint16 that holds its bits."""
        array = self.empty(shape, "float16" if dtype is Dtype.F16 else "uint16")
        self._seed += 1
        if array.size:
            self._kernels["attn_bench_fill"](
                self.full_grid,
                data=int(array.gpudata),
                count=array.size,
                seed=self._seed,
                is_bf16=dtype is Dtype.BF16,
            )
        return array

    def bytes(self, shape: Sequence[int], dtype: Dtype = Dtype.F16) -> Any:
        """The bytes of normal values of `dtype`, as uint8."""
        count = math.prod(shape)
        return self.normal((-(-count // 2),), dtype).view(np.uint8)[:count].reshape(shape)

    def to_device(self, values: Any) -> Any:
        """A numpy array on the device."""
        values = np.ascontiguousarray(values)
        array = self.empty(values.shape, values.dtype.name)
        array.set(values)
        return array

    def write(self, array: Any, value: int = 0, stream: int = 0) -> None:
        """Overwrite an array of a multiple of 16 bytes."""
        count = array.nbytes // 16
        self._kernels["attn_bench_write"](
            min(self.full_grid, -(-count // THREADS)),
            stream=stream,
            data=int(array.gpudata),
            count=count,
            value=value,
        )

    def read(self, array: Any, order: Any, sink: Any, grid: int) -> None:
        """Read an array in pieces of PIECE_BYTES, in an order on the device; None: as they lie."""
        self._kernels["attn_bench_read"](
            grid,
            data=int(array.gpudata),
            order=0 if order is None else int(order.gpudata),
            piece_count=array.nbytes // PIECE_BYTES,
            piece_len=PIECE_BYTES // 16,
            sink=int(sink.gpudata),
        )

    def milliseconds(self, call: Call, repeats: int, host_s: float) -> float:
        """Device time of one call, between events around `repeats` of them. The device pauses
        first for as long as the host needs to enqueue them all."""
        cuda = driver.pycuda()
        begin, end = cuda.Event(), cuda.Event()
        pause = min(int(1.3e9 * host_s * repeats) + 20_000, _LONGEST_PAUSE_NS)
        self._kernels["attn_bench_pause"](1, 1, nanoseconds=pause)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(begin.time_till(end)) / repeats

    def cold_milliseconds(self, call: Call, flushed: Any) -> float:
        """Device time of one call that finds nothing of its data in L2: `flushed`, which is larger,
        is overwritten in front of it."""
        cuda = driver.pycuda()
        begin, end = cuda.Event(), cuda.Event()
        self.write(flushed)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.time_till(end))

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        driver.pycuda().Context.synchronize()
