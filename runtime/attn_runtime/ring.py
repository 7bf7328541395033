# SPDX-License-Identifier: Apache-2.0
"""Prefill of prompts that no GPU could hold: queries stay, K and V go round the ranks.

Every sequence is cut in zig-zag (KeySharding.ZIGZAG): rank r has the pieces r and 2 n - 1 - r of
2 n, of the queries as of the keys. In step s a rank computes its queries against the K and V that
rank r - s had in the beginning, and leaves a part; meanwhile what it computes with goes on to the
next rank. At the end the n parts of each row are merged: all in float32, nothing is rounded on the
way. Under a causal mask every step is the same work on every rank.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from attn_runtime.attention import Attention
from attn_runtime.checks import need_int
from attn_runtime.context_parallel import ContextParallel, Sharding
from attn_runtime.errors import ArgumentError
from attn_runtime.events import Event
from attn_runtime.problem import CpForm, KeySharding
from attn_runtime.ranks import Ranks

_BUFFERS: Final = 3
"""Of K and V: one is computed with and sent, one arrives, and one may still be read by a kernel."""


@dataclass(frozen=True, slots=True)
class RingLayout:
    """What each rank has of a batch of sequences. A call sees each of them as two: the queries of
    its two pieces, each against all of its keys."""

    lens: tuple[int, ...]
    size: int
    rank: int

    def pieces(self, rank: int) -> list[tuple[int, int]]:
        """[2 batch_size] (position of the first token, tokens) of the pieces that a rank has."""
        found = []
        for length in self.lens:
            chunk = max(1, -(-length // (2 * self.size)))
            for turn in (rank, 2 * self.size - 1 - rank):
                first = min(turn * chunk, length)
                found.append((first, min(chunk, length - first)))
        return found

    def rows(self, rank: int) -> int:
        """Tokens that a rank has, of all sequences."""
        return sum(count for _, count in self.pieces(rank))

    @property
    def most_rows(self) -> int:
        """Tokens of the rank that has most."""
        return max(self.rows(rank) for rank in range(self.size))

    @property
    def cu_q_len(self) -> list[int]:
        """[2 batch_size + 1]"""
        return [0, *accumulate(count for _, count in self.pieces(self.rank))]

    @property
    def offset_q(self) -> list[int]:
        """[2 batch_size]"""
        return [first for first, _ in self.pieces(self.rank)]

    @property
    def cu_k_len(self) -> list[int]:
        """[2 batch_size + 1] each sequence twice."""
        return [0, *accumulate(length for length in self.lens for _ in range(2))]

    def cu_rows(self, rank: int) -> list[int]:
        """[2 batch_size + 1] where the keys of a sequence begin among those of a rank."""
        counts = [count for _, count in self.pieces(rank)]
        starts = [0, *accumulate(map(sum, zip(counts[::2], counts[1::2], strict=True)))]
        return [*(start for start in starts[:-1] for _ in range(2)), starts[-1]]

    def tokens(self) -> list[int]:
        """The tokens that this rank has, as rows of the whole batch with its sequences back to
        back."""
        starts = [0, *accumulate(self.lens)]
        pieces = self.pieces(self.rank)
        found: list[int] = []
        for at, (first, count) in enumerate(pieces):
            begin = starts[at // 2] + first
            found.extend(range(begin, begin + count))
        return found


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
    cu_q_len: Any
    cu_k_len: Any
    offset_q: Any
    cu_rows: list[Any]
    """By the rank that had the keys in the beginning."""
    keys: list[tuple[Any, Any, Any]]
    """Buffers: the whole, K [most_rows, num_kv_heads, head_dim] and V in it."""


class RingAttention:
    """Attention of whole sequences, spread over a group in zig-zag, on tensors of torch.

    `group` and `timeout_s` are those of ContextParallel, the other arguments those of Attention.
    """

    def __init__(
        self, group: Any = None, *, timeout_s: float = 600.0, split: Any = "off", **attention: Any
    ) -> None:
        if "cache" in attention or "context_parallel" in attention:
            raise ArgumentError(
                "cache",
                "cache is linear in a ring, and its group is the first argument: leave "
                "cache and context_parallel out",
            )
        self.group: Final = ContextParallel(group, sharding=Sharding.ZIGZAG, timeout_s=timeout_s)
        size, rank = self.group.ranks.size, self.group.ranks.rank
        self._sources: list[Attention] = []
        for source in range(size):
            is_last = source == (rank + 1) % size
            form = CpForm.COMPLETE if is_last else CpForm.PART_ONLY
            ranks = Ranks(size, source, KeySharding.ZIGZAG, form=form, rounds=1)
            own: Any = _Source(ranks)
            self._sources.append(
                Attention(cache="linear", split=split, context_parallel=own, **attention)
            )
        self._batches: dict[tuple[int, ...], _Batch] = {}

    def layout(self, lens: Sequence[int]) -> RingLayout:
        """What each rank has of sequences of these lengths."""
        ranks = self.group.ranks
        return RingLayout(
            tuple(need_int("lens", length) for length in lens), ranks.size, ranks.rank
        )

    def __call__(
        self, q: Any, k: Any, v: Any, *, lens: Sequence[int], return_lse: bool = False
    ) -> Any:
        """Enqueue one call on torch's current stream; returns out, or (out, lse) with return_lse.

        q [tokens, num_heads, head_dim], k and v [tokens, num_kv_heads, head_dim or head_dim_v]:
        the tokens of `layout(lens).tokens()`, in that order; out and lse likewise. `lens` are the
        lengths of the whole sequences, the same on every rank. Buffers for three times this rank's
        K and V are kept for each `lens`, and a part of every rank is needed for each row: see
        docs/context-parallel.md.
        """
        torch: Any = sys.modules["torch"]
        batch = self._batch(q, k, v, lens)
        size, rank = self.group.ranks.size, self.group.ranks.rank
        stream = int(torch.cuda.current_stream(q.device).cuda_stream)
        out = q.new_empty((*q.shape[:2], v.shape[2]))
        arguments = {
            "cu_q_len": batch.cu_q_len,
            "cu_k_len": batch.cu_k_len,
            "offset_q": batch.offset_q,
            "max_q_len": max(count for _, count in batch.layout.pieces(rank)),
            "max_k_len": max(batch.layout.lens),
            "out": out,
            "workspace": self._workspace(q, batch),
        }
        if return_lse:
            arguments["lse"] = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
        rows = batch.layout.rows(rank)
        for buffer, own in zip(batch.keys[0][1:], (k, v), strict=True):
            buffer[:rows] = own
        for step, (_, keys, values) in self._steps(batch, stream):
            source = (rank - step) % size
            self._sources[source](q, keys, values, cu_rows=batch.cu_rows[source], **arguments)
        return (out, arguments["lse"]) if return_lse else out

    def _steps(self, batch: _Batch, stream: int) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
        """The buffer of each step, once `stream` may read it. The exchange of a step is enqueued
        in front of its kernel: behind it, it would find no multiprocessor free."""
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
                self.group.rotate(own.data_ptr(), coming.data_ptr(), bytes_, side)
                arrived.append(_recorded(side))
            if step > 0:
                arrived[step - 1].hold(stream)
            yield step, batch.keys[step % _BUFFERS]
            computed.append(_recorded(stream))
        if arrived:
            arrived[-1].hold(stream)  # the next call fills the buffers again

    def _workspace(self, q: Any, batch: _Batch) -> Any:
        torch: Any = sys.modules["torch"]
        rank = self.group.ranks.rank
        plan = self._sources[rank].plan(
            token_num=q.shape[0],
            batch_size=2 * len(batch.layout.lens),
            max_q_len=max(count for _, count in batch.layout.pieces(rank)),
            max_k_len=max(batch.layout.lens),
        )
        return torch.empty(max(1, plan.workspace_bytes), dtype=torch.uint8, device=q.device)

    def _batch(self, q: Any, k: Any, v: Any, lens: Sequence[int]) -> _Batch:
        """The arrays of a batch; made once, since they are copied to the device."""
        key = tuple(lens)
        found = self._batches.get(key)
        if found is None:
            found = self._batches[key] = self._make_batch(q, k, v, self.layout(lens))
        rows = found.layout.rows(found.layout.rank)
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if tensor.shape[0] != rows:
                raise ArgumentError(
                    name,
                    f"{name} has {tensor.shape[0]} rows: of sequences of {list(key)} tokens, rank "
                    f"{found.layout.rank} of {found.layout.size} has {rows}",
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
