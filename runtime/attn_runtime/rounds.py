# SPDX-License-Identifier: Apache-2.0
"""A context-parallel call in rounds of heads: what one round leaves is exchanged while the kernel
of the next one runs.

    stream    kernel 0   kernel 1   merge 0   kernel 2   merge 1   ...            merge n - 1
    side                 gather 0             gather 1             gather n - 1

A gather is enqueued ahead of the kernel that it lies beside, on a stream of high priority: a
persistent kernel leaves no multiprocessor for what comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, Final

from attn_codegen.config import AttentionConfig, Cache, Mode
from attn_runtime.events import Event
from attn_runtime.kv_cache import Values, bytes_of
from attn_runtime.launch import ARRAYS, Exchange, Launch
from attn_runtime.plan import Plan, Problem
from attn_runtime.problem import CpForm
from attn_runtime.settings import Settings
from attn_runtime.streams import stream_handle

MOST_ROUNDS: Final = 4
ROUND_BYTES: Final = 8 << 20
"""What could be received in the time that another round costs: a kernel ends, and the next begins
with fewer multiprocessors, as long as the gather takes some (measured on two H100s)."""
ROUND_ROWS: Final = 1 << 15
"""Least rows of a round: two tiles of 128 for each of 128 multiprocessors."""

_OUT: Final = ARRAYS.index("out")


def round_count(settings: Settings, problem: Problem) -> int:
    """Rounds of a call: a divisor of num_kv_heads. It depends on nothing that ranks may differ in,
    since all of them exchange the same.

    Of B bytes to receive, r rounds leave B / r in the open, and each round but one costs as much as
    b bytes: the least in all is at r = sqrt(B / b).

    A decode kernel is one wave, whose rows all end together: no gather fits behind it. And the
    pairs of a quantised block lie behind the codes of all heads.
    """
    ranks, config = settings.ranks, settings.config
    is_empty = 0 in (problem.token_num, problem.batch_size, problem.max_q_len)
    if (
        not ranks.exchanges
        or is_empty
        or (config.cache is Cache.BLOCK and config.kv_dtype.has_pairs)
    ):
        return 1
    most = ranks.rounds
    if most is None:
        gathers_O = ranks.form is CpForm.COMPLETE
        row_floats = problem.head_dim_v + 2 if gathers_O else 2
        rows = problem.token_num * problem.num_heads
        received = 4 * row_floats * rows * (ranks.size - 1)
        most = min(isqrt(received // ROUND_BYTES), rows // ROUND_ROWS, MOST_ROUNDS)
        most = 1 if config.mode is Mode.DECODE else most
    heads = problem.num_kv_heads
    return next(count for count in range(max(1, min(most, heads)), 0, -1) if heads % count == 0)


def share_of(problem: Problem, rounds: int) -> Problem:
    """The problem of one round."""
    return replace(
        problem,
        num_heads=problem.num_heads // rounds,
        num_kv_heads=problem.num_kv_heads // rounds,
    )


class RoundsLaunch:
    """One call in rounds, each a launch of its own. Belongs to one thread."""

    def __init__(
        self,
        make: Callable[[Values], Launch],
        config: AttentionConfig,
        plan: Plan,
        values: Values,
        exchange: Exchange,
        rounds: int,
    ) -> None:
        self._exchange, self._dtype = exchange, config.dtype.value
        self._launches = [make(_values_of(config, values, rounds, at)) for at in range(rounds)]
        self._steps = _steps(config, plan, values, rounds)
        self._elements = int(values["token_num"]) * _width(values)
        self._computed = [Event() for _ in range(rounds)]
        self._arrived = [Event() for _ in range(rounds)]

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """See Launch."""
        side = self._exchange.side_stream()
        for at, launch in enumerate(self._launches):
            own = [
                address and address + at * step
                for address, step in zip(addresses, self._steps, strict=True)
            ]
            launch.compute(own, stream)
            self._computed[at].record(stream)
            self._computed[at].hold(side)
            self._exchange.gather(*launch.parts(own), side)
            self._arrived[at].record(side)
            if at > 0:
                self._merge(at - 1, stream)
        self._merge(len(self._launches) - 1, stream)
        self._exchange.finish(addresses[_OUT], self._elements, self._dtype, stream)

    def run_on_own(self, addresses: Sequence[int], stream: Any) -> None:
        """As `run`, on a stream of PyCUDA, None for the default one."""
        self.run(addresses, stream_handle(stream))

    def _merge(self, at: int, stream: int) -> None:
        self._arrived[at].hold(stream)
        self._launches[at].merge_ranks(stream)


def _width(values: Values) -> int:
    """Elements of a token in out."""
    return int(values["num_heads"]) * int(values["size_per_head_v"])


def _values_of(config: AttentionConfig, values: Values, rounds: int, at: int) -> Values:
    """The fields of one round: some of the heads, written between those of the others."""
    kv_heads = int(values["num_kv_heads"]) // rounds
    own = values | {
        "num_heads": int(values["num_heads"]) // rounds,
        "num_kv_heads": kv_heads,
        "cp_out_stride": _width(values),
    }
    if config.cache is Cache.BLOCK:  # [kv_head][K, V][token][head_dim]
        rows = at * kv_heads * 2 * int(values["block_iter_params.block_len"])
        own["block_iter_params.layer_offset"] += rows * bytes_of(config, config.head_dim)
    return own


def _steps(config: AttentionConfig, plan: Plan, values: Values, rounds: int) -> list[int]:
    """Bytes from the heads of a round to those of the next, in each of ARRAYS. The rounds share the
    workspace out."""
    heads = int(values["num_heads"]) // rounds
    kv_heads = int(values["num_kv_heads"]) // rounds
    steps = dict.fromkeys(ARRAYS, 0)
    steps |= {
        "q": 2 * heads * config.head_dim,
        "out": 2 * heads * config.head_dim_v,
        "lse": 4 * heads * int(values["token_num"]),
        "sinks": 4 * heads,
        "k_scale": 4 * kv_heads * int(values["kv_scale_stride"]),
        "v_scale": 4 * kv_heads * int(values["kv_scale_stride"]),
        "workspace": plan.workspace_bytes // rounds,
    }
    if config.cache is not Cache.BLOCK:
        owner = f"{config.cache}_iter_params"
        for name in ("k", "v"):
            steps[name] = bytes_of(config, kv_heads * int(values[f"{owner}.{name}_head_stride"]))
            if config.kv_dtype.has_pairs:
                pairs = int(values[f"{owner}.{name}_pair_head_stride"])
                steps[f"{name}_pairs"] = 2 * kv_heads * pairs
    return [*steps.values()]
