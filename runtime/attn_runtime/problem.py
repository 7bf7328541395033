# SPDX-License-Identifier: Apache-2.0
"""What a plan is made from: the problem, the limits of device and kernel, and the split policy.

The names are those of attn/plan.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from attn_runtime.errors import AttnError

INT_MAX = 2**31 - 1
COST_MAX = 2**16 - 1
"""Nanoseconds of a tile or a step, so that sums of them stay in 64 bits."""


class PlanError(AttnError, ValueError):
    """A call that cannot be planned.

    `field` is the member of AttentionParams, or of the limits, at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class KeySharding(IntEnum):
    """Which keys of a sequence each rank has; the numbers are those of attn::KeySharding."""

    INTERLEAVED = 0
    CONTIGUOUS = 1
    ZIGZAG = 2


class CpForm(IntEnum):
    """What a rank has at the end of a call; the numbers are those of attn::CpForm."""

    SCALED = 0
    COMPLETE = 1
    PART_ONLY = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked. Lengths are upper bounds: a larger one gives the same result.

    `window_size` 0 is none. `cp_size` is the number of ranks that the keys of each sequence are
    spread over, `cp_chunk` how many consecutive ones go to one rank where they are interleaved.
    `key_bytes` are those of K and V of a token and KV head, 0 where they do not matter.
    """

    token_num: int
    batch_size: int
    max_q_len: int
    max_k_len: int
    num_heads: int
    num_kv_heads: int
    head_dim_v: int
    window_size: int = 0
    causal: bool = True
    cp_rank: int = 0
    cp_size: int = 1
    cp_sharding: KeySharding = KeySharding.INTERLEAVED
    cp_chunk: int = 1
    cp_form: CpForm = CpForm.SCALED
    key_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What the device can hold; grid.x reaches 2^31 - 1 since compute capability 3.0.

    `shared_per_cta`: bytes of shared memory that a CTA can opt in to.
    """

    sm_count: int
    max_grid_x: int = INT_MAX
    shared_per_cta: int = INT_MAX


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """The tile of a kernel (query rows x keys), and its occupancy on the device.

    `tile_ns`, `step_ns`: what a query tile costs, and each of its key tiles, on a full device.
    `packed_heads` is how many query heads of a group its rows may belong to, a power of two.
    `tile_counters`: ints of AttentionParams.counters that its CTAs take tiles from.
    `merged_splits`: splits of a tile that a cluster of CTAs merges, at most.
    `cluster_ctas`: most CTAs of a cluster, which puts parts together; 1: it has no clusters.
    """

    cta_q: int
    cta_s: int
    ctas_per_sm: int
    threads: int
    shared_bytes: int
    tile_ns: int = 2000
    step_ns: int = 1500
    packed_heads: int = 1
    tile_counters: int = 0
    merged_splits: int = 1
    cluster_ctas: int = 1


class SplitKind(IntEnum):
    """How the keys of a query tile are split; the numbers are those of attn::SplitKind."""

    HEURISTIC = 0
    FIXED = 1
    FIXED_SIZE = 2
    OFF = 3


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """A way to split and its value.

    `max_split_k` is the number of splits that the workspace holds; 0 is no bound.
    """

    kind: SplitKind = SplitKind.HEURISTIC
    value: int = 0
    max_split_k: int = 0

    @classmethod
    def heuristic(cls, max_split_k: int = 0) -> SplitPolicy:
        """As many splits as fill the device."""
        return cls(SplitKind.HEURISTIC, 0, max_split_k)

    @classmethod
    def fixed(cls, splits: int, max_split_k: int = 0) -> SplitPolicy:
        """`splits` equal splits of every query tile, or one per key tile where there are fewer."""
        return cls(SplitKind.FIXED, splits, max_split_k)

    @classmethod
    def fixed_size(cls, tokens: int, max_split_k: int = 0) -> SplitPolicy:
        """One split per `tokens` keys (rounded up to whole tiles): the same bits in any batch."""
        return cls(SplitKind.FIXED_SIZE, tokens, max_split_k)

    @classmethod
    def off(cls) -> SplitPolicy:
        """Never split."""
        return cls(SplitKind.OFF)


def check(
    problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy
) -> None:
    """Refuse a value out of range with a PlanError that names it."""
    _need(problem, "token_num", 0)
    _need(problem, "batch_size", 0)
    _need(problem, "max_q_len", 0)
    _need(problem, "max_k_len", 0)
    _need(problem, "num_heads", 1)
    _need(problem, "num_kv_heads", 1)
    _need(problem, "head_dim_v", 1)
    _need(problem, "window_size", 0)
    _need(problem, "cp_size", 1)
    _need(problem, "cp_rank", 0)
    _need(problem, "cp_chunk", 1)
    _check_ranks(problem)
    if problem.num_heads % problem.num_kv_heads:
        raise PlanError(
            "num_kv_heads",
            f"num_kv_heads is {problem.num_kv_heads}: it must divide num_heads, "
            f"which is {problem.num_heads}",
        )
    _need(device, "sm_count", 1)
    _need(device, "max_grid_x", 1)
    _need(kernel, "cta_q", 1)
    _need(kernel, "cta_s", 1)
    _need(kernel, "ctas_per_sm", 1)
    _need(kernel, "tile_ns", 0, most=COST_MAX)
    _need(kernel, "step_ns", 0, most=COST_MAX)
    _need(kernel, "packed_heads", 1)
    if kernel.cta_q % kernel.packed_heads:
        raise PlanError(
            "packed_heads",
            f"packed_heads is {kernel.packed_heads}: it must divide cta_q, which is {kernel.cta_q}",
        )
    _need(policy, "max_split_k", 0)
    if policy.kind is SplitKind.FIXED:
        _need(policy, "value", 1, "split_cnt")
    if policy.kind is SplitKind.FIXED_SIZE:
        _need(policy, "value", 1, "split_size")


def _check_ranks(problem: Problem) -> None:
    size = problem.cp_size
    if problem.cp_rank >= size:
        raise PlanError(
            "cp_rank",
            f"cp_rank is {problem.cp_rank}: ranks count from 0 to cp_size - 1, which is {size - 1}",
        )
    if problem.cp_chunk * size > INT_MAX:
        raise PlanError(
            "cp_chunk",
            f"cp_chunk is {problem.cp_chunk}: times cp_size, which is {size}, it must stay below "
            "2^31",
        )


def _need(owner: Any, attribute: str, least: int, field: str = "", *, most: int = INT_MAX) -> None:
    field, value = field or attribute, getattr(owner, attribute)
    if value < least:
        raise PlanError(field, f"{field} is {value}: it must be at least {least}")
    if value > most:
        raise PlanError(field, f"{field} is {value}: it must be at most {most}")


def check_grid(ctas: int, device: DeviceLimits, field: str, next_step: str) -> None:
    """Refuse a grid that cannot be launched; `field` gives it, and `next_step` is what to do."""
    if ctas > device.max_grid_x:
        raise PlanError(
            field,
            f"{field} gives a grid of {ctas} CTAs: at most {device.max_grid_x} can be launched; "
            f"{next_step}",
        )


def ceil_div(value: int, step: int) -> int:
    """The quotient, rounded up."""
    return -(-value // step)
