# SPDX-License-Identifier: Apache-2.0
"""Prefill of prompts that no GPU could hold: queries stay, K and V go round the ranks.

Every sequence is cut into pieces that are spread over the ranks, of the queries as of the keys: in
zig-zag, rank r has the pieces r and 2 n - 1 - r of 2 n. In step s a rank computes its queries
against the K and V that rank r - s had in the beginning, and leaves a part; meanwhile what it
computes with goes on to the next rank. At the end the n parts of each row are merged: all in
float32, nothing is rounded on the way. Under a causal mask every step of a zig-zag is the same work
on every rank.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attn_runtime.attention import Attention
from attn_runtime.checks import need_int
from attn_runtime.context_parallel import ContextParallel, Sharding
from attn_runtime.errors import ArgumentError
from attn_runtime.events import Event, Pause, is_capturing
from attn_runtime.problem import CpForm
from attn_runtime.ranks import Ranks
from attn_runtime.ring_layout import RingLayout

_BUFFERS: Final = 3
"""Of K and V: one is computed with and sent, one arrives, and one may still be read by a kernel."""
_KEPT: Final = 2
"""Batches whose buffers are kept; steps of prompts alternate at most."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Stands for the group in the call of one step: the parts are all this rank's own."""

    ranks: Ranks

    def gather(self, first: int, floats: int, stream: int) -> None:
        """The parts lie where they belong."""

    def finish(self, out: int, elements: int, dtype: str, stream: int) -> None:
        """Nothing follows."""

    def side_stream(self) -> int:
        """Not asked for: nothing is exchanged."""
        raise NotImplementedError


@dataclass(slots=True)
class _Batch:
    """The arrays of a layout on the device."""

    layout: RingLayout
    rows: int
    """Tokens of this rank."""
    max_q_len: int
    cu_q_len: Any
    cu_k_len: Any
    offset_q: Any
    cu_rows: list[Any]
    """By the rank that had the keys in the beginning."""
    keys: list[tuple[Any, Any, Any]]
    """Buffers: the whole, K [most_rows, num_kv_heads, head_dim] and V in it."""


class RingAttention:
    """Attention of whole sequences, spread over a group, on tensors of torch.

    `group`, `sharding`, `chunk` and `timeout_s` are those of ContextParallel, the other arguments
    those of Attention. Zig-zag is the best balanced one. Interleaved, K and V are then those of a
    rank's cache with the same chunk, in its order; every chunk is a sequence of its own to the
    kernel, so take one of many tiles, 1024 say.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        sharding: Sharding | str = Sharding.ZIGZAG,
        chunk: int = 1,
        timeout_s: float = 600.0,
        split: Any = "off",
        **attention: Any,
    ) -> None:
        for name in ("mode", "cache", "kv_dtype", "context_parallel"):
            if name in attention:
                raise ArgumentError(
                    name,
                    f"{name} was given: a ring is a prefill of linear K and V of q's type, and its "
                    "group is the first argument; leave mode, cache, kv_dtype and context_parallel "
                    "out",
                )
        self.group: Final = ContextParallel(
            group, sharding=sharding, chunk=chunk, timeout_s=timeout_s
        )
        own = self.group.ranks
        size, rank = own.size, own.rank
        self._sources: list[Attention] = []
        for source in range(size):
            is_last = source == (rank + 1) % size
            form = CpForm.COMPLETE if is_last else CpForm.PART_ONLY
            ranks = Ranks(size, source, own.sharding, own.chunk, form=form, rounds=1)
            parts: Any = _Source(ranks)
            self._sources.append(
                Attention(cache="linear", split=split, context_parallel=parts, **attention)
            )
        self._pause: Pause | None = None
        self._batches: dict[tuple[int, ...], _Batch] = {}  # the last used one last
        self._captured: dict[tuple[int, ...], _Batch] = {}  # graphs know their addresses

    def layout(self, lens: Sequence[int]) -> RingLayout:
        """What each rank has of sequences of these lengths."""
        ranks = self.group.ranks
        return RingLayout(
            tuple(need_int("lens", length) for length in lens),
            *(ranks.size, ranks.rank, ranks.sharding, ranks.chunk),
        )

    def __call__(
        self, q: Any, k: Any, v: Any, *, lens: Sequence[int], return_lse: bool = False
    ) -> Any:
        """Enqueue one call on torch's current stream; returns out, or (out, lse) with return_lse.

        q [tokens, num_heads, head_dim], k and v [tokens, num_kv_heads, head_dim or head_dim_v]:
        the tokens of `layout(lens).tokens()`, in that order; out and lse likewise. `lens` are the
        lengths of the whole sequences, the same on every rank. Buffers for three times this rank's
        K and V are kept for the last two `lens`, and for those that were captured in a graph, after
        a call outside of one. A part of every rank is needed for each row: see
        docs/context-parallel.md.
        """
        torch: Any = sys.modules["torch"]
        batch = self._batch(q, k, v, lens)
        size, rank = self.group.ranks.size, self.group.ranks.rank
        stream = int(torch.cuda.current_stream(q.device).cuda_stream)
        if is_capturing(stream):
            self._captured[batch.layout.lens] = batch
        out = q.new_empty((*q.shape[:2], v.shape[2]))
        arguments = {
            "cu_q_len": batch.cu_q_len,
            "cu_k_len": batch.cu_k_len,
            "offset_q": batch.offset_q,
            "max_q_len": batch.max_q_len,
            "max_k_len": max(batch.layout.lens),
            "out": out,
            "workspace": self._workspace(q, batch),
        }
        if return_lse:
            arguments["lse"] = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
        for buffer, own in zip(batch.keys[0][1:], (k, v), strict=True):
            buffer[: batch.rows] = own
        for step, (_, keys, values) in self._steps(batch, stream):
            source = (rank - step) % size
            self._sources[source](q, keys, values, cu_rows=batch.cu_rows[source], **arguments)
        return (out, arguments["lse"]) if return_lse else out

    def _steps(self, batch: _Batch, stream: int) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
        """The buffer of each step, once `stream` may read it. The exchange of a step is enqueued
        in front of its kernel, and begins before it: behind, it would find no multiprocessor
        free. Only the first one needs a head start; the GPU is given the others while a kernel
        runs."""
        size = self.group.ranks.size
        side = self.group.side_stream() if size > 1 else stream
        computed = [_recorded(stream)]  # K and V lie in the first buffer
        arrived: list[Event] = []
        for step in range(size):
            if step + 1 < size:
                # What arrives takes the buffer of two steps ago, whose kernel must be done.
                computed[max(0, step - 1)].hold(side)
                own, coming = (batch.keys[at % _BUFFERS][0] for at in (step, step + 1))
                bytes_ = own.numel() * own.element_size()
                ready = _recorded(side)
                self.group.rotate(own.data_ptr(), coming.data_ptr(), bytes_, side)
                if step == 0:
                    self._hold_back(stream, ready)
                arrived.append(_recorded(side))
            if step > 0:
                arrived[step - 1].hold(stream)
            yield step, batch.keys[step % _BUFFERS]
            computed.append(_recorded(stream))
        if arrived:
            arrived[-1].hold(stream)  # the next call fills the buffers again

    def _hold_back(self, stream: int, ready: Event) -> None:
        """Lets an exchange begin that may since `ready`: some microseconds behind that."""
        if self._pause is None:
            self._pause = Pause()
        ready.hold(stream)
        self._pause.put_into(stream)

    def _workspace(self, q: Any, batch: _Batch) -> Any:
        torch: Any = sys.modules["torch"]
        rank = self.group.ranks.rank
        plan = self._sources[rank].plan(
            token_num=q.shape[0],
            batch_size=len(batch.offset_q),
            max_q_len=batch.max_q_len,
            max_k_len=max(batch.layout.lens),
        )
        return torch.empty(max(1, plan.workspace_bytes), dtype=torch.uint8, device=q.device)

    def _batch(self, q: Any, k: Any, v: Any, lens: Sequence[int]) -> _Batch:
        """The arrays of a batch; made once, since they are copied to the device."""
        key = tuple(lens)
        found = self._captured.get(key) or self._batches.pop(key, None)
        if found is None:
            found = self._make_batch(q, k, v, self.layout(lens))
        self._batches[key] = found
        if len(self._batches) > _KEPT:
            del self._batches[next(iter(self._batches))]
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if tensor.shape[0] != found.rows:
                raise ArgumentError(
                    name,
                    f"{name} has {tensor.shape[0]} rows: it must have {found.rows}, those that "
                    f"rank {found.layout.rank} of {found.layout.size} has of sequences of "
                    f"{list(key)} tokens (RingAttention.layout says which)",
                )
        return found

    def _make_batch(self, q: Any, k: Any, v: Any, layout: RingLayout) -> _Batch:
        torch: Any = sys.modules["torch"]

        def ints(values: Sequence[int]) -> Any:
            return torch.tensor(values, dtype=torch.int32, device=q.device)

        rows, widths = layout.most_rows, (k[0].numel(), v[0].numel())
        keys = []
        for _ in range(min(_BUFFERS, layout.size)):
            whole = torch.zeros(rows * sum(widths), dtype=k.dtype, device=k.device)
            parts = whole.split([rows * width for width in widths])
            keys.append(
                (
                    whole,
                    parts[0].view(rows, *k.shape[1:]),
                    parts[1].view(rows, *v.shape[1:]),
                )
            )
        return _Batch(
            layout,
            layout.rows(layout.rank),
            layout.max_q_len,
            ints(layout.cu_q_len),
            ints(layout.cu_k_len),
            ints(layout.offset_q),
            [ints(layout.cu_rows(rank)) for rank in range(layout.size)],
            keys,
        )


def _recorded(stream: int) -> Event:
    """An event behind all that a stream has been given."""
    event = Event()
    event.record(stream)
    return event
