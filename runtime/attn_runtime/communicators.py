# SPDX-License-Identifier: Apache-2.0
"""Collectives of the communicator that a program already has: torch.distributed, or nccl4py.

The transport is NCCL's. Memory is named by its address, whatever library owns it.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from attn_runtime import driver
from attn_runtime.array_view import TORCH_NAMES
from attn_runtime.errors import ArgumentError
from attn_runtime.events import Event, make_stream

_ABORTED: Final = "attn_runtime: aborted"  # begins a key of the store of a process group
_TYPESTR: Final = {"f32": "<f4", "f16": "<f2", "u8": "|u1"}


class Communicator(Protocol):
    """What a group of ranks can do together. Each call is enqueued: what `stream` is given before
    comes first, what it is given after waits. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def size(self) -> int:
        """Ranks."""

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """`count` floats of each rank, in order from address `first` on; this rank's are there."""

    def all_reduce(self, address: int, count: int, dtype: str, stream: int) -> None:
        """Add up `count` elements (f16 or bf16) over the ranks, in place."""

    def reduce_scatter(self, first: int, count: int, dtype: str, stream: int) -> None:
        """Add up what all ranks have from address `first` on, `count` elements for each rank in
        order; each gets its own sums, in their place."""

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """Send `count` bytes to the next rank, and receive as many from the one before."""

    def abort(self) -> None:
        """Let the other ranks know, then end what is under way, on the GPU too. The communicator
        cannot be used any more."""

    def is_aborted(self) -> bool:
        """Whether a rank let the others know that it aborts, as far as this one can tell. An
        exchange of three ranks or more ends where one aborts, and leaves anything."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` elements of device memory that somebody else keeps alive."""

    address: int
    count: int
    dtype: str = "f32"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        typestr = _TYPESTR.get(self.dtype, "<f2")  # bf16 has no name here: viewed afterwards
        return {
            "data": (self.address, False),
            "shape": (self.count,),
            "typestr": typestr,
            "version": 3,
        }


def communicator_of(group: Any) -> Communicator:
    """The communicator of a torch.distributed process group (None: the default one), or of an
    nccl.core.Communicator; an object that has the methods of Communicator is one.

    Raises ArgumentError for anything else.
    """
    names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(group).__mro__}
    if "nccl.Communicator" in names:
        return NcclCommunicator(group)
    if hasattr(group, "all_gather") and hasattr(group, "rotate"):
        own: Communicator = group
        return own
    if group is None or "torch.ProcessGroup" in names:
        return TorchCommunicator(group)
    raise ArgumentError(
        "group",
        f"group is of type {type(group).__name__}: give a process group of torch.distributed "
        "(None: the default one) or an nccl.core.Communicator",
    )


def _torch_tensor(span: Span) -> Any:
    """The memory as a tensor of torch, on the current device."""
    torch = sys.modules.get("torch")
    if torch is None:
        raise ArgumentError(
            "output",
            "output is reduced, and without torch nccl4py has no word for bf16 memory: import "
            "torch, or take output='complete'",
        )
    tensor = torch.as_tensor(span, device=f"cuda:{driver.current_device()}")
    return tensor.view(getattr(torch, TORCH_NAMES[span.dtype]))


class TorchCommunicator:
    """A process group of torch.distributed on NCCL: collectives run on the stream that is current,
    or, before torch 2.8, on one of the group between two events."""

    def __init__(self, group: Any) -> None:
        torch = sys.modules.get("torch")
        distributed = getattr(torch, "distributed", None)
        if torch is None or distributed is None or not distributed.is_initialized():
            raise ArgumentError(
                "group",
                "group is None, and torch.distributed is not initialised: call "
                "init_process_group('nccl') first, or give a communicator",
            )
        backend = distributed.get_backend(group)
        if backend in ("gloo", "mpi"):
            raise ArgumentError(
                "group",
                f"group has the backend {backend}: exchanges between GPUs are NCCL's; give a group "
                "of init_process_group('nccl') or of new_group(backend='nccl')",
            )
        self._torch: Any = torch
        self._group = distributed.group.WORLD if group is None else group
        self.rank: int = distributed.get_rank(self._group)
        self.size: int = distributed.get_world_size(self._group)
        self._store = distributed.distributed_c10d._get_process_group_store(self._group)
        # A group that was destroyed may have had the same name in the same store.
        keys = (f"{_ABORTED} {group}" for group in itertools.count())
        self._aborted: str = next(key for key in keys if not self._store.check([key]))
        self._tensor = lru_cache(maxsize=256)(_torch_tensor)

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """See Communicator."""
        whole = self._tensor(Span(first, self.size * count))
        own = self._tensor(Span(first + 4 * self.rank * count, count))
        with self._on(stream):
            self._torch.distributed.all_gather_into_tensor(whole, own, group=self._group)

    def all_reduce(self, address: int, count: int, dtype: str, stream: int) -> None:
        """See Communicator."""
        with self._on(stream):
            self._torch.distributed.all_reduce(
                self._tensor(Span(address, count, dtype)), group=self._group
            )

    def reduce_scatter(self, first: int, count: int, dtype: str, stream: int) -> None:
        """See Communicator."""
        whole = self._tensor(Span(first, self.size * count, dtype))
        own = self._tensor(Span(first + 2 * self.rank * count, count, dtype))
        with self._on(stream):
            self._torch.distributed.reduce_scatter_tensor(own, whole, group=self._group)

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """See Communicator."""
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        own, coming = (self._tensor(Span(at, count, "u8")) for at in (send, receive))
        sent, received = (
            [count if rank == peer else 0 for rank in range(self.size)] for peer in (after, before)
        )
        # Not batch_isend_irecv, which runs on a stream of torch's own, of low priority.
        with self._on(stream):
            self._torch.distributed.all_to_all_single(
                coming, own, received, sent, group=self._group
            )

    def abort(self) -> None:
        """See Communicator."""
        with suppress(RuntimeError):  # the store went with the process that had it
            self._store.set(self._aborted, f"by rank {self.rank}")
        backend = self._group._get_backend(self._torch.device("cuda"))
        backend.abort()

    def is_aborted(self) -> bool:
        """See Communicator."""
        with suppress(RuntimeError):
            return bool(self._store.check([self._aborted]))
        return False

    def _on(self, stream: int) -> AbstractContextManager[Any]:
        cuda = self._torch.cuda
        if stream == cuda.current_stream().cuda_stream:
            return nullcontext()
        external: AbstractContextManager[Any] = cuda.stream(cuda.ExternalStream(stream))
        return external


def _nccl_span(span: Span) -> Any:
    """What nccl4py takes. It believes an array interface of CUDA to be of device 0 (0.6), and the
    interface has no name for bf16: torch's tensors are better where there is torch."""
    return _torch_tensor(span) if "torch" in sys.modules or span.dtype == "bf16" else span


class NcclCommunicator:
    """NVIDIA's nccl4py. Its calls run on a stream of this communicator, ordered by events."""

    def __init__(self, communicator: Any) -> None:
        self._nccl = communicator
        self.rank: int = int(communicator.rank)
        self.size: int = int(communicator.nranks)
        self._stream: int | None = None
        self._before: Event
        self._after: Event

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """See Communicator."""
        own = _nccl_span(Span(first + 4 * self.rank * count, count))
        whole = _nccl_span(Span(first, self.size * count))
        handle = self._enter(stream)
        self._nccl.allgather(own, whole, stream=handle)
        self._leave(stream)

    def all_reduce(self, address: int, count: int, dtype: str, stream: int) -> None:
        """See Communicator."""
        from nccl.core import SUM

        span = _nccl_span(Span(address, count, dtype))
        handle = self._enter(stream)
        self._nccl.allreduce(span, span, SUM, stream=handle)
        self._leave(stream)

    def reduce_scatter(self, first: int, count: int, dtype: str, stream: int) -> None:
        """See Communicator."""
        from nccl.core import SUM

        whole = _nccl_span(Span(first, self.size * count, dtype))
        own = _nccl_span(Span(first + 2 * self.rank * count, count, dtype))
        handle = self._enter(stream)
        self._nccl.reduce_scatter(whole, own, SUM, stream=handle)
        self._leave(stream)

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """See Communicator."""
        from nccl.core import group

        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        own, coming = (_nccl_span(Span(at, count, "u8")) for at in (send, receive))
        handle = self._enter(stream)
        with group():
            self._nccl.send(own, after, stream=handle)
            self._nccl.recv(coming, before, stream=handle)
        self._leave(stream)

    def abort(self) -> None:
        """See Communicator. There is no way to tell the other ranks."""
        self._nccl.abort()

    def is_aborted(self) -> bool:
        """See Communicator: it cannot tell."""
        return False

    def _enter(self, stream: int) -> int:
        """The own stream, behind what the caller's has been given."""
        if self._stream is None:
            self._stream, self._before, self._after = make_stream(), Event(), Event()
        self._before.record(stream)
        self._before.hold(self._stream)
        return self._stream

    def _leave(self, stream: int) -> None:
        """The caller's stream waits for the own one."""
        assert self._stream is not None
        self._after.record(self._stream)
        self._after.hold(stream)
