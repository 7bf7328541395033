# SPDX-License-Identifier: Apache-2.0
"""A kernel of a cubin in a context: its attributes, its occupancy, its launch."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attn_runtime import driver
from attn_runtime.driver import Context
from attn_runtime.errors import DriverError


class Function:
    """A kernel of a cubin, loaded in a primary context.

    `registers` and `local_bytes` are per thread, `static_shared_bytes` per CTA; `ptx_version` is 90
    of what was compiled from compute_90. Parameters are one
    struct by value, which begins at `argument_offset` of the parameter space: not 0 for a struct
    that is aligned to more than the space is. Both are 0 where the driver cannot say (before 12.4).
    """

    def __init__(self, context: Context, cubin: bytes, symbol: str) -> None:
        self.context = context
        self.symbol = symbol
        own, cuda = driver.pycuda(), driver.bindings()
        self._owner = context.of_thread()
        with context:
            try:
                self._module = own.module_from_buffer(cubin)
                self._pycuda = self._module.get_function(symbol)
                numbers = own.function_attribute
                self.registers = int(self._pycuda.get_attribute(numbers.NUM_REGS))
                self.ptx_version = int(self._pycuda.get_attribute(numbers.PTX_VERSION))
                self.local_bytes = int(self._pycuda.get_attribute(numbers.LOCAL_SIZE_BYTES))
                self.static_shared_bytes = int(
                    self._pycuda.get_attribute(numbers.SHARED_SIZE_BYTES)
                )
            except own.Error as error:
                raise DriverError(f"{symbol} cannot be loaded: {error}") from error
            self._library = driver.call("cuModuleLoadData", cuda.cuModuleLoadData(cubin))
            self._handle = driver.call(
                "cuModuleGetFunction", cuda.cuModuleGetFunction(self._library, symbol.encode())
            )
            driver.call_if_known("cuFuncLoad", self._handle)  # not within a graph capture, later
            layout = driver.call_if_known("cuFuncGetParamInfo", self._handle, 0) or (0, 0)
            self.argument_offset, self.argument_bytes = layout
        self._own_launch, self._own_error = self._pycuda._launch_kernel, own.Error
        self._foreign_launch = cuda.cuLaunchKernel
        self._configured_launch = cuda.cuLaunchKernelEx
        _functions.append(self)

    def opt_in(self, shared_bytes: int) -> None:
        """Allow this much dynamic shared memory per CTA."""
        cuda = driver.bindings()
        attribute = driver.pycuda().function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        name = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self.context:
            self._pycuda.set_attribute(attribute, shared_bytes)
            driver.call(
                "cuFuncSetAttribute", cuda.cuFuncSetAttribute(self._handle, name, shared_bytes)
            )

    def ctas_per_sm(self, threads: int, shared_bytes: int) -> int:
        """CTAs that one multiprocessor holds at a time."""
        ask = driver.bindings().cuOccupancyMaxActiveBlocksPerMultiprocessor
        with self.context:
            result = ask(self._handle, threads, shared_bytes)
        return int(driver.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", result))

    def launch(
        self, grid_x: int, threads: int, shared_bytes: int, stream: int, parameters: int
    ) -> None:
        """Launch on any stream, by its handle. `parameters` is the address of an array that holds
        the address of the struct. The context must be current."""
        status = self._foreign_launch(
            self._handle, grid_x, 1, 1, threads, 1, 1, shared_bytes, stream, parameters, 0
        )
        if status[0]:
            driver.call(f"the launch of {self.symbol}", status)

    def launcher(
        self,
        grid_x: int,
        threads: int,
        shared_bytes: int,
        parameters: int,
        *,
        may_begin_early: bool = False,
        cluster: int = 1,
        is_balanced: bool = False,
    ) -> Callable[[int], None]:
        """`launch` with everything but the stream, for one thread: cheaper, when it is repeated."""
        config = _launch_config(grid_x, threads, shared_bytes)
        config.attrs = _attributes(
            may_begin_early=may_begin_early, cluster=cluster, is_balanced=is_balanced
        )
        config.numAttrs = len(config.attrs)
        launch, handle, last = self._configured_launch, self._handle, 0

        def start(stream: int) -> None:
            nonlocal last
            if stream != last:
                config.hStream = last = stream
            status = launch(config, handle, parameters, 0)
            if status[0]:
                driver.call(f"the launch of {self.symbol}", status)

        return start

    def launch_on_own(
        self, grid_x: int, threads: int, shared_bytes: int, stream: Any, buffer: Any
    ) -> None:
        """Launch on a stream of PyCUDA, None for the default one. `buffer` is the parameter space:
        `argument_offset` bytes of anything, then the struct. The context must be current."""
        try:
            self._own_launch((grid_x, 1, 1), (threads, 1, 1), buffer, shared_bytes, stream)
        except self._own_error as error:
            raise DriverError(f"the launch of {self.symbol} failed: {error}") from error

    def unload(self) -> None:
        """Free the code; the function must not be launched any more. PyCUDA frees a module while
        the very context object that it was loaded under is current."""
        self._owner.push()
        try:
            self._own_launch = self._pycuda = self._module = None
            driver.bindings().cuModuleUnload(self._library)
        finally:
            self._owner.pop()
            self._owner = None


def _launch_config(grid_x: int, threads: int, shared_bytes: int) -> Any:
    config = driver.bindings().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid_x, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    return config


def _attributes(*, may_begin_early: bool, cluster: int, is_balanced: bool) -> list[Any]:
    """One launch may begin while the one before it ends; `cluster` CTAs in a row are a cluster. One
    that is balanced finds room beside that launch: the device may place it as it likes."""
    cuda = driver.bindings()
    names = cuda.CUlaunchAttributeID
    attributes = []
    if may_begin_early:
        early = cuda.CUlaunchAttribute()
        early.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = 1
        attributes.append(early)
    if cluster > 1:
        clusters = cuda.CUlaunchAttribute()
        clusters.id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        dim = clusters.value.clusterDim
        dim.x, dim.y, dim.z = cluster, 1, 1
        attributes.append(clusters)
    if cluster > 1 and is_balanced:
        places = cuda.CUlaunchAttribute()
        places.id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
        policy = cuda.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING
        places.value.clusterSchedulingPolicyPreference = policy
        attributes.append(places)
    return attributes


_functions: list[Function] = []


@atexit.register
def _release() -> None:
    """Modules go before their contexts: the driver's own, which registered first, runs later."""
    while _functions:
        with suppress(Exception):  # the process ends: a context that is gone has freed everything
            _functions.pop().unload()
