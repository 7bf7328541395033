# SPDX-License-Identifier: Apache-2.0
"""The one door to the GPU, and the only importer of pycuda and cuda.bindings.

PyCUDA: contexts, modules, attributes, memory, launches on its own streams. cuda.bindings: what
PyCUDA cannot do: occupancy, tensor maps, facts about pointers and captures, launches on streams
made elsewhere. PyCUDA does not give the handle of its functions out, so a cubin is loaded through
both.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from attn_runtime.errors import DriverError
from attn_runtime.streams import LEGACY_DEFAULT

INSTALL: Final = "pip install 'attn-codegen[runtime]'"

TENSOR_MAP_BYTES: Final = 128
COUNTERS: Final = 1 << 16
"""Of a device: more than there are streams and captured launches at a time."""
COUNTER_BLOCKS: Final = 1 << 10
"""The same, where a launch takes many counters."""

_lock = threading.RLock()
_contexts: dict[int, Context] = {}
_contexts_by_handle: dict[int, Context] = {}
_counters: dict[tuple[int, int], Counters] = {}


@cache
def pycuda() -> Any:
    """The module pycuda.driver, initialised. Raises DriverError that says what is missing."""
    try:
        import pycuda.driver as driver
    except ModuleNotFoundError as error:
        raise DriverError(f"PyCUDA is not installed ({error}): {INSTALL}") from error
    except ImportError as error:
        raise _no_driver(error) from error
    try:
        driver.init()
    except driver.Error as error:
        raise _no_driver(error) from error
    if driver.Device.count() == 0:
        raise _no_driver("it counts 0 devices")
    return driver


@cache
def bindings() -> Any:
    """The module cuda.bindings.driver, initialised. Raises DriverError as `pycuda` does."""
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        raise DriverError(f"cuda-bindings is not installed ({error}): {INSTALL}") from error
    except ImportError as error:
        raise _no_driver(error) from error
    try:
        call("cuInit", driver.cuInit(0), driver)
    except RuntimeError as error:
        raise _no_driver(error) from error
    return driver


def _no_driver(cause: object) -> DriverError:
    return DriverError(
        f"no NVIDIA GPU can be used ({cause}): install the NVIDIA driver, and make the device "
        "visible (nvidia-smi lists it; containers need --gpus; CUDA_VISIBLE_DEVICES may hide it)"
    )


def call(name: str, result: tuple[Any, ...], driver: Any = None) -> Any:
    """What a call of cuda.bindings returned beside its status; a DriverError for a bad status."""
    status = result[0]
    if status:
        driver = driver or bindings()
        text = _text(driver.cuGetErrorString(status))
        raise DriverError(f"{name} failed: {_text(driver.cuGetErrorName(status))} ({text})")
    return result[1] if len(result) == 2 else result[1:]


def call_if_known(name: str, *arguments: Any) -> tuple[Any, ...] | None:
    """What a newer call of cuda.bindings returned; None where the bindings or the driver do not
    know it, or it failed."""
    try:
        result: tuple[Any, ...] = getattr(bindings(), name)(*arguments)
    except (AttributeError, RuntimeError):
        return None
    return None if result[0] else result[1:]


def _text(result: tuple[Any, Any]) -> str:
    return result[1].decode() if isinstance(result[1], bytes) else "unknown error"


@dataclass(frozen=True, slots=True)
class Device:
    """What a kernel must know of a GPU. Shared memory in bytes."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    sm_count: int
    shared_per_block: int
    """Dynamic and static shared memory that one CTA may opt in to."""

    @property
    def target(self) -> str:
        """What cubins are compiled for, such as sm_90."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


class Context:
    """The primary context of a device, which torch, CuPy and the CUDA runtime use too.

    As a `with` block it is the thread's current context inside. PyCUDA frees memory only in the
    thread that its context object was made in, so that each thread has an object of its own.
    """

    __slots__ = ("_ask_current", "_threads", "device", "handle")

    def __init__(self, ordinal: int) -> None:
        driver = pycuda()
        self._ask_current = bindings().cuCtxGetCurrent
        raw = driver.Device(ordinal)
        attribute = driver.device_attribute
        self.device = Device(
            ordinal=ordinal,
            name=raw.name(),
            capability=tuple(raw.compute_capability()),
            sm_count=raw.get_attribute(attribute.MULTIPROCESSOR_COUNT),
            shared_per_block=raw.get_attribute(attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        )
        self._threads = threading.local()
        with self:
            self.handle = current_context()

    def is_current(self) -> bool:
        """True when launches of this thread go to this context already."""
        return int(self._ask_current()[1]) == self.handle

    def of_thread(self) -> Any:
        """This thread's PyCUDA object of the context."""
        try:
            return self._threads.pycuda
        except AttributeError:
            own = pycuda().Device(self.device.ordinal).retain_primary_context()
            self._threads.pycuda = own
            return own

    def __enter__(self) -> Context:
        self.of_thread().push()
        return self

    def __exit__(self, *_: object) -> None:
        pycuda().Context.pop()


def device_count() -> int:
    """GPUs that are visible."""
    return int(pycuda().Device.count())


def context_of_device(ordinal: int) -> Context:
    """The primary context of a device, retained on first use until the process ends."""
    found = _contexts.get(ordinal)
    if found is not None:
        return found
    with _lock:
        if ordinal not in _contexts:
            if not 0 <= ordinal < device_count():
                raise DriverError(
                    f"there is no GPU {ordinal}: {device_count()} are visible, counted from 0"
                )
            context = Context(ordinal)
            _contexts_by_handle[context.handle] = context
            _contexts[ordinal] = context
        return _contexts[ordinal]


def current_device() -> int:
    """The device of the thread's current context; 0 where there is none."""
    pycuda()
    if not current_context():
        return 0
    return int(call("cuCtxGetDevice", bindings().cuCtxGetDevice()))


def current_context() -> int:
    """The handle of the thread's current context; 0 where there is none."""
    return int(call("cuCtxGetCurrent", bindings().cuCtxGetCurrent()))


def context_of_pointer(pointer: int) -> Context:
    """The primary context that holds a device address.

    Raises DriverError when the address is not of a GPU, or lies in a context that is not primary:
    kernels that run in one context cannot read the memory of another.
    """
    ask, context_attribute, ordinal_attribute = _pointer_query()
    status, owner = ask(context_attribute, pointer)
    handle = 0 if status else int(owner)
    known = _contexts_by_handle.get(handle)
    if known is not None:
        return known
    status, ordinal = ask(ordinal_attribute, pointer)
    if status:
        raise DriverError(f"address {pointer:#x} is not memory of a GPU")
    context = context_of_device(int(ordinal))
    if handle and handle != context.handle:
        raise DriverError(
            f"address {pointer:#x} lies in a context of its own, and kernels run in the primary "
            "context of the device: with PyCUDA, import pycuda.autoprimaryctx in place of "
            "pycuda.autoinit"
        )
    return context


@cache
def _pointer_query() -> tuple[Any, Any, Any]:
    driver = bindings()
    names = driver.CUpointer_attribute
    return (
        driver.cuPointerGetAttribute,
        names.CU_POINTER_ATTRIBUTE_CONTEXT,
        names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
    )


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """16-bit rows for TMA, innermost dimension first: elements of each, bytes between neighbours of
    all but the first, elements of a box."""

    is_bf16: bool
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...]
    box: tuple[int, ...]


def tensor_map(layout: RowsLayout, address: int) -> bytes:
    """The driver's tensor map of rows: 128-byte swizzle, zeros outside. Raises DriverError."""
    names, driver = _tensor_map_names(), bindings()
    status, encoded = driver.cuTensorMapEncodeTiled(
        names.bf16 if layout.is_bf16 else names.f16,
        len(layout.dims),
        address,
        [driver.cuuint64_t(extent) for extent in layout.dims],
        [driver.cuuint64_t(stride) for stride in layout.byte_strides],
        [driver.cuuint32_t(extent) for extent in layout.box],
        [driver.cuuint32_t(1)] * len(layout.dims),
        names.no_interleave,
        names.swizzle,
        names.promotion,
        names.zero_fill,
    )
    if status:
        call("cuTensorMapEncodeTiled", (status,))
    return ctypes.string_at(encoded.getPtr(), TENSOR_MAP_BYTES)


class _TensorMapNames(NamedTuple):
    bf16: Any
    f16: Any
    no_interleave: Any
    swizzle: Any
    promotion: Any
    zero_fill: Any


@cache
def _tensor_map_names() -> _TensorMapNames:
    driver = bindings()
    types = driver.CUtensorMapDataType
    return _TensorMapNames(
        types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )


def launch_config(
    grid_x: int, threads: int, shared_bytes: int, *, may_begin_early: bool = False
) -> Any:
    """The CUlaunchConfig of a launch; one that may begin early does so while the launch before it
    ends."""
    driver = bindings()
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid_x, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    if may_begin_early:
        attribute = driver.CUlaunchAttribute()
        names = driver.CUlaunchAttributeID
        attribute.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs = [attribute]
        config.numAttrs = 1
    return config


class Counters:
    """Blocks of `ints` of device memory in which the CTAs of a launch count, zeroed once. They
    reset themselves, so that one serves all launches of a stream; a captured launch, which may be
    replayed beside the stream that it was captured from, has one of its own."""

    def __init__(self, context: Context, ints: int) -> None:
        driver = bindings()
        self._block_bytes = 4 * ints
        self._blocks = COUNTERS if ints == 1 else COUNTER_BLOCKS
        count = ints * self._blocks
        with context:
            self._base = int(call("cuMemAlloc", driver.cuMemAlloc(4 * count)))
            call("cuMemsetD32", driver.cuMemsetD32(self._base, 0, count))
        self._ask_capturing = driver.cuStreamIsCapturing
        self._idle = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        self._of_stream: dict[int, int] = {}
        self._taken = 0

    def address(self, stream: int) -> int:
        """The block for a launch on a stream, by its handle. The context must be current."""
        if stream > LEGACY_DEFAULT:  # no other stream can be captured
            status, capturing = self._ask_capturing(stream)
            if not status and capturing != self._idle:
                return self._next()
        found = self._of_stream.get(stream)
        if found is None:
            found = self._of_stream[stream] = self._next()
        return found

    def _next(self) -> int:
        with _lock:
            self._taken += 1
            return self._base + self._block_bytes * (self._taken % self._blocks)


def counters_of(context: Context, ints: int = 1) -> Counters:
    """The counters of a device for launches that take `ints` of them, a power of two; allocated on
    first use until the process ends."""
    key = (context.handle, ints)
    found = _counters.get(key)
    if found is None:
        with _lock:
            found = _counters.get(key)
            if found is None:
                found = _counters[key] = Counters(context, ints)
    return found


def gpu_array(context: Context, shape: tuple[int, ...], dtype: str) -> Any:
    """An empty PyCUDA GPUArray; `dtype` is a numpy name."""
    from pycuda import gpuarray

    with context:
        return gpuarray.empty(shape, dtype)


@atexit.register
def _release() -> None:
    """Contexts go before PyCUDA; function.py has unloaded its modules by then."""
    _contexts_by_handle.clear()
    _contexts.clear()
