# SPDX-License-Identifier: Apache-2.0
"""The one door to the GPU, and the only importer of pycuda and cuda.bindings.

PyCUDA: contexts, modules, attributes, memory, launches on its own streams. cuda.bindings: what
PyCUDA cannot do: occupancy, tensor maps, facts about pointers and captures, launches on streams
made elsewhere. PyCUDA does not give the handle of its functions out, so a cubin is loaded through
both.
"""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from attn_runtime.errors import DriverError

INSTALL: Final = "pip install pycuda cuda-bindings"


_lock = threading.RLock()
_contexts: dict[int, Context] = {}
_contexts_by_handle: dict[int, Context] = {}


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
                    f"there is no GPU {ordinal}: those that are visible count from 0 to "
                    f"{device_count() - 1}"
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
        raise DriverError(f"address {pointer:#x} is not memory of a GPU: give an array that is")
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
