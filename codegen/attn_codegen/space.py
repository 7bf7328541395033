# SPDX-License-Identifier: Apache-2.0
"""The space of configurations: all that are valid, and which of them are near another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import chain, product
from typing import Final

from attn_codegen.config import AttentionConfig, Cache, Dtype, KvDtype, Mask, Mode, reduction_of
from attn_codegen.errors import ConfigError
from attn_codegen.rules import (
    ARCHES,
    ATTENTION_MODES,
    HEAD_DIM_STEP,
    HEAD_DIMS,
    faults,
    is_valid,
)
from attn_codegen.tiling import tilings


def require_valid(config: AttentionConfig) -> AttentionConfig:
    """The configuration itself, or a ConfigError with every failed rule and what is nearest."""
    wrong = faults(config)
    if wrong:
        near = ", ".join(other.name for other in nearest(config))
        raise ConfigError(
            f"{'; '.join(wrong)}. Nearest valid configurations to {config.name}: {near}"
        )
    return config


@cache
def valid_space() -> tuple[AttentionConfig, ...]:
    """Every valid configuration, every tile included, sorted by name."""
    return sorted_by_name(
        tiled for config in _candidates() if is_valid(config) for tiled in with_tiles(config)
    )


def nearest(config: AttentionConfig, n: int = 3) -> tuple[AttentionConfig, ...]:
    """The n valid configurations that change least of what was asked for, nearest first."""
    ranked = sorted(valid_space(), key=lambda other: (_distance(config, other), other.name))
    return tuple(ranked[:n])


def _candidates() -> Iterator[AttentionConfig]:
    """Default tiles over the values that the rules of single axes let pass."""
    attention = product(ATTENTION_MODES, ARCHES, Dtype, _kinds_of_rows(), Cache, Mask)
    writers = product((Mode.WRITE,), ARCHES, Dtype, _kinds_of_rows(), Cache, (None,))
    for mode, arch, dtype, rows, kv_cache, mask in chain(attention, writers):
        yield AttentionConfig(mode, arch, dtype, *rows, kv_cache, mask)
    for dtype, head_dim in product(Dtype, HEAD_DIMS):
        yield reduction_of(AttentionConfig(dtype=dtype, head_dim=head_dim))


@cache
def _kinds_of_rows() -> tuple[tuple[KvDtype, int, int], ...]:
    """(kv_dtype, head_dim, head_dim_v): any two widths, or codes of one width."""
    plain = ((KvDtype.SAME, *widths) for widths in product(HEAD_DIMS, HEAD_DIMS))
    codes = (
        (kv_dtype, width, width)
        for kv_dtype, width in product(KvDtype, HEAD_DIMS)
        if kv_dtype is not KvDtype.SAME
    )
    return (*plain, *codes)


def with_tiles(config: AttentionConfig) -> Iterator[AttentionConfig]:
    """The configuration with each of its tiles, the default one included."""
    return (replace(config, tile=tile) for tile in tilings(config))


def sorted_by_name(configs: Iterable[AttentionConfig]) -> tuple[AttentionConfig, ...]:
    """Each configuration once."""
    return tuple(sorted(set(configs), key=lambda config: config.name))


_CHANGE_COST: Final[dict[str, float]] = {
    "mode": 1000.0,
    "mask": 100.0,
    "dtype": 60.0,
    "cache": 40.0,
    "arch": 20.0,
    "kv_dtype": 20.0,
    "tile": 0.5,
}
_STEP_COST: Final = 12.0
_UNEQUAL_COST: Final = 50.0
_EQUAL_COST: Final = 4.0


def _distance(asked: AttentionConfig, other: AttentionConfig) -> float:
    """Cost of what differs: widths by their steps, a head_dim_v of its own, and axes of words."""
    cost = sum(
        price
        for axis, price in _CHANGE_COST.items()
        if getattr(asked, axis) != getattr(other, axis)
    )
    steps = abs(asked.head_dim - other.head_dim)
    if asked.head_dim_v != asked.head_dim:
        steps += abs(asked.head_dim_v - other.head_dim_v)
        cost += _EQUAL_COST if other.head_dim_v == other.head_dim else 0.0
    elif other.head_dim_v != other.head_dim:
        cost += _UNEQUAL_COST
    return cost + steps * _STEP_COST / HEAD_DIM_STEP
