# SPDX-License-Identifier: Apache-2.0
"""One attention over many GPUs: the keys of each sequence are spread over the ranks of a group."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final, TypeVar

from attn_runtime.checks import need_int
from attn_runtime.communicators import Communicator, communicator_of
from attn_runtime.deadlines import Deadlines
from attn_runtime.errors import ArgumentError
from attn_runtime.events import Event, is_capturing, make_stream, thread_entry
from attn_runtime.problem import CpForm, KeySharding
from attn_runtime.ranks import ONE_RANK, Ranks
from attn_runtime.shards import KeyShards, shards_of
from attn_runtime.streams import stream_handle


class Sharding(StrEnum):
    """Which keys of a sequence each of n ranks has.

    INTERLEAVED: key t is on rank t / chunk % n (chunk 1 is TurboMind's); a growing sequence stays
    where it is. CONTIGUOUS: rank r has the r-th of n equal pieces. ZIGZAG: rank r has the pieces r
    and 2 n - 1 - r of 2 n, which balances causal work where queries are spread alike.
    """

    INTERLEAVED = "interleaved"
    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"


class Output(StrEnum):
    """What every rank has at the end of a call, and what is exchanged for it, of each row (a head
    of a token) by each of n ranks.

    COMPLETE: the output, merged in float32; one all-gather of 4 (head_dim_v + 2) bytes.
    REDUCED: the output, as a sum of the ranks' rounded shares; an all-gather of 8 bytes and an
    all-reduce of 2 head_dim_v bytes. For many rows; takes no `finished`.
    SCATTERED: the same sum, of the r-th of n equal pieces of the tokens alone, in its place in out;
    the other rows hold shares. An all-gather of 8 bytes and a reduce-scatter of 2 head_dim_v bytes,
    half of an all-reduce.
    SCALED: this rank's share of it, for a sum that follows anyway; an all-gather of 8 bytes.
    """

    COMPLETE = "complete"
    REDUCED = "reduced"
    SCATTERED = "scattered"
    SCALED = "scaled"


class ContextParallel:
    """The group that an Attention is spread over, and how.

    `group` is the communicator that the program has: a process group of torch.distributed (None:
    the default one), an nccl.core.Communicator, or an object with the methods of
    communicators.Communicator. All ranks make the same calls in the same order, from one thread at
    a time. `timeout_s` is how long an exchange may take once this rank has come to it: when a rank
    has failed, the communicator is aborted then, so that nothing waits forever, and the next call,
    `check` or `wait` raises ContextParallelError; a graph is replayed within `watch`. Where one
    rank aborts, exchanges of the others may end with anything for a result: they learn it from the
    store of a torch.distributed group, in `check` and `wait` for certain (an nccl4py communicator
    has none). `rounds` is
    the most rounds that a call takes: what the heads of a round leave is exchanged while those of
    the next are computed. Left out, it follows from the bytes that are exchanged; 1 exchanges
    everything behind the kernel.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        sharding: Sharding | str = Sharding.INTERLEAVED,
        chunk: int = 1,
        output: Output | str = Output.COMPLETE,
        timeout_s: float = 600.0,
        rounds: int | None = None,
    ) -> None:
        self.communicator: Final[Communicator] = communicator_of(group)
        self.output: Final = _word(Output, "output", output)
        own = _word(Sharding, "sharding", sharding)
        if not isinstance(timeout_s, int | float) or not timeout_s > 0:
            raise ArgumentError(
                "timeout_s",
                f"timeout_s is {timeout_s!r}: give the seconds that an exchange may take, above 0",
            )
        self.ranks: Final = Ranks(
            size=self.communicator.size,
            rank=self.communicator.rank,
            sharding=KeySharding[own.name],
            chunk=need_int("chunk", chunk, least=1),
            form=CpForm.COMPLETE if self.output is Output.COMPLETE else CpForm.SCALED,
            adds_up=self.output in (Output.REDUCED, Output.SCATTERED),
            own_rows=self.output is Output.SCATTERED,
            rounds=None if rounds is None else need_int("rounds", rounds, least=1),
        )
        self._timeout_s = timeout_s
        self._deadlines: Deadlines | None = None
        self._side_stream: int | None = None

    def local_lens(self, lens: Sequence[int]) -> list[int]:
        """How many keys this rank has of sequences of these lengths."""
        return [int(self._shards(length).keys_before(length)) for length in lens]

    def cu_rows(self, lens: Sequence[int]) -> list[int]:
        """[batch_size + 1] sums of the keys that this rank has: where each sequence begins in its
        linear cache."""
        return [0, *accumulate(self.local_lens(lens))]

    def positions(self, length: int) -> Any:
        """The positions of this rank's keys of a sequence, in the order of its cache (numpy)."""
        return self._shards(length).positions(length)

    def watch(self, stream: Any) -> AbstractContextManager[None]:
        """Bound by `timeout_s` what is enqueued within, from when `stream` comes to it: the replay
        of a graph, whose exchanges nothing else watches (`with group.watch(stream):
        graph.replay()`)."""
        return self._watched("what was enqueued within watch()", stream_handle(stream))

    def check(self) -> None:
        """Raise ContextParallelError if an exchange has failed, here or on another rank; waits for
        none. Results are sound if it does not raise behind the synchronisation that brought them.
        """
        if self._deadlines is not None:
            self._deadlines.ask()

    def wait(self) -> None:
        """Until every exchange so far has ended; raises ContextParallelError if one fails."""
        if self._deadlines is not None:
            self._deadlines.wait()

    def _shards(self, length: int) -> KeyShards:
        """Of a sequence of so many keys, all ranks' together."""
        ranks, length = self.ranks, need_int("length", length)
        return shards_of(ranks.sharding, ranks.size, ranks.rank, ranks.chunk, length)

    # --- what Attention and RingAttention ask for -----------------------------------------------

    def gather(self, first: int, floats: int, stream: int) -> None:
        """Bring the parts of all ranks together, `floats` of each from address `first` on. Calls of
        Attention ask for it."""
        ranks = self.ranks
        what = f"all-gather of {4 * floats} bytes from each of {ranks.size} ranks"
        with self._watched(what, stream):
            self.communicator.all_gather(first, floats, stream)

    def finish(self, out: int, elements: int, dtype: str, stream: int) -> None:
        """What `output` has follow the merge: add up the ranks' shares at address `out`. Calls of
        Attention ask for it."""
        if self.output is Output.REDUCED:
            with self._watched(f"all-reduce of {elements} elements of {dtype}", stream):
                self.communicator.all_reduce(out, elements, dtype, stream)
        elif self.output is Output.SCATTERED:
            share = elements // self.ranks.size
            with self._watched(f"reduce-scatter of {share} elements of {dtype} each", stream):
                self.communicator.reduce_scatter(out, share, dtype, stream)

    def side_stream(self) -> int:
        """A stream of the highest priority, for what is exchanged while a kernel runs."""
        if self._side_stream is None:
            self._side_stream = make_stream()
        return self._side_stream

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """Send `count` bytes to the next rank, and receive as many from the one before."""
        with self._watched(f"{count} bytes to the next rank", stream):
            self.communicator.rotate(send, receive, count, stream)

    def _watched(self, what: str, stream: int) -> _Watched:
        if self._deadlines is not None:
            self._deadlines.check()
        if is_capturing(stream):
            return _Watched(None, what, stream)
        if self._deadlines is None:
            who, group = f"rank {self.ranks.rank} of {self.ranks.size}", self.communicator
            self._deadlines = Deadlines(
                self._timeout_s, group.abort, who, thread_entry(), group.is_aborted
            )
        return _Watched(self._deadlines, what, stream)


def ranks_of(context_parallel: Any) -> Ranks:
    """The ranks of a group; the one there is where no group is given. Raises ArgumentError for
    anything else."""
    if context_parallel is None:
        return ONE_RANK
    ranks = getattr(context_parallel, "ranks", None)  # the steps of a ring have ranks of their own
    if not isinstance(ranks, Ranks):
        raise ArgumentError(
            "context_parallel",
            f"context_parallel is {context_parallel!r}: give a ContextParallel(group), or leave it "
            "out",
        )
    return ranks


class _Watched(AbstractContextManager[None]):
    """An exchange between two events, with a deadline; none within a graph capture. It is watched
    from its beginning: NCCL connects ranks in their first call, and there the host waits for them.
    """

    __slots__ = ("_deadlines", "_end", "_stream", "_what")

    def __init__(self, deadlines: Deadlines | None, what: str, stream: int) -> None:
        self._deadlines, self._what, self._stream = deadlines, what, stream

    def __enter__(self) -> None:
        if self._deadlines is not None:
            begin, self._end = Event(), Event()
            begin.record(self._stream)
            self._deadlines.expect(self._what, begin, self._end)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._deadlines is not None:
            self._end.record(self._stream)
            if kind is not None:
                self._deadlines.check()  # what was aborted says why


_Word = TypeVar("_Word", bound=StrEnum)


def _word(kind: type[_Word], argument: str, value: _Word | str) -> _Word:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(kind)
        raise ArgumentError(
            argument, f"{argument} is {value!r}: it must be one of {allowed}"
        ) from None
