# SPDX-License-Identifier: Apache-2.0
"""The presets: named sets of configurations, each with the reductions that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, product
from typing import Final

from attn_codegen.config import (
    Arch,
    AttentionConfig,
    Cache,
    Dtype,
    KvDtype,
    Mask,
    Mode,
    reduction_of,
)
from attn_codegen.errors import ConfigError
from attn_codegen.prose import join_words
from attn_codegen.rules import ARCHES, ATTENTION_MODES, is_valid
from attn_codegen.space import sorted_by_name, with_tiles
from attn_codegen.tuning import Tuning, shipped

PRESETS: Final = ("default", "all", "turbomind")

_HEAD_DIMS: Final = (64, 128, 192, 256)
_UNEQUAL: Final = ((192, 128),)
_DEFAULT_DECODE_SM90_HEAD_DIMS: Final = (64, 128)
_DEFAULT_QUANTISED_HEAD_DIMS: Final = (64, 128)

_Combination = tuple[Mode, Arch, Dtype, KvDtype, tuple[int, int], Cache, Mask]


def preset(name: str, tuning: Tuning | None = None) -> tuple[AttentionConfig, ...]:
    """The configurations of a preset, reductions included, sorted by name; `tuning` says which
    tiles a plan may pick (left out, it is that of the package). Raises ConfigError."""
    if name == "default":
        return _default(tuning or shipped())
    if name == "all":
        return _all()
    if name == "turbomind":
        return _turbomind()
    raise ConfigError(f"unknown preset {name!r}: use {join_words(PRESETS)}")


def _default(tuning: Tuning) -> tuple[AttentionConfig, ...]:
    """What common engines need: over linear and paged caches the tiles that a plan may pick, over
    TurboMind's blocks the default tile."""
    common = (config for config in _plain(tuple(Cache), tuple(Mask)) if _is_common(config))
    tiled = (
        replace(config, tile=tile)
        for config in common
        for tile in (tuning.of(config) if config.cache is not Cache.BLOCK else ("",))
    )
    decode = (
        config
        for config in _quantised(_DEFAULT_QUANTISED_HEAD_DIMS, (Cache.PAGED,))
        if config.mode is Mode.DECODE and config.arch is Arch.SM80
    )
    writers = _writers(_DEFAULT_QUANTISED_HEAD_DIMS, (Cache.BLOCK, Cache.PAGED))
    return sorted_by_name([*with_reductions(chain(tiled, decode)), *writers])


def _all() -> tuple[AttentionConfig, ...]:
    """Every valid configuration of the usual widths, with every tile."""
    every = (_HEAD_DIMS, tuple(Cache))
    attention = chain(_plain(tuple(Cache), tuple(Mask)), _quantised(*every))
    tiled = (tiled for config in attention for tiled in with_tiles(config))
    return sorted_by_name([*with_reductions(tiled), *_writers(*every)])


def _turbomind() -> tuple[AttentionConfig, ...]:
    """What TurboMind runs: causal prefill and decode on linear rows and on blocks, decode on blocks
    of int8 and int4, and the writers of blocks."""
    plain = _plain((Cache.LINEAR, Cache.BLOCK), (Mask.CAUSAL,))
    quantised = _quantised(_HEAD_DIMS, (Cache.BLOCK,))
    codes = (config for config in quantised if config.mode is Mode.DECODE)
    attention = (
        config
        for config in chain(plain, codes)
        if config.head_dim_v == config.head_dim and config.arch is Arch.SM80
    )
    chosen = [*with_reductions(attention), *_writers(_HEAD_DIMS, (Cache.BLOCK,))]
    return sorted_by_name(config for config in chosen if config.kv_dtype is not KvDtype.E4M3)


def _is_common(config: AttentionConfig) -> bool:
    """Hopper's decode kernels begin earlier than those of sm80; that is all, so that the widths
    that most engines have will do, on plain caches."""
    is_own = config.mode is Mode.DECODE and config.arch is Arch.SM90
    return not is_own or config.head_dim in _DEFAULT_DECODE_SM90_HEAD_DIMS


def with_reductions(configs: Iterable[AttentionConfig]) -> tuple[AttentionConfig, ...]:
    """The configurations and the reductions that their splits end in, each once, sorted by name."""
    chosen = tuple(configs)
    return sorted_by_name(
        [*chosen, *(reduction_of(c) for c in chosen if c.mode in ATTENTION_MODES)]
    )


def _plain(caches: tuple[Cache, ...], masks: tuple[Mask, ...]) -> Iterator[AttentionConfig]:
    """Attention on caches of q's own type."""
    widths = (*((width, width) for width in _HEAD_DIMS), *_UNEQUAL)
    return _valid(product(ATTENTION_MODES, ARCHES, Dtype, [KvDtype.SAME], widths, caches, masks))


def _quantised(head_dims: tuple[int, ...], caches: tuple[Cache, ...]) -> Iterator[AttentionConfig]:
    """Attention on quantised caches."""
    kinds = [kv_dtype for kv_dtype in KvDtype if kv_dtype is not KvDtype.SAME]
    widths = [(width, width) for width in head_dims]
    return _valid(product(ATTENTION_MODES, ARCHES, Dtype, kinds, widths, caches, Mask))


def _valid(combinations: Iterable[_Combination]) -> Iterator[AttentionConfig]:
    for mode, arch, dtype, kv_dtype, widths, kv_cache, mask in combinations:
        config = AttentionConfig(mode, arch, dtype, kv_dtype, *widths, kv_cache, mask)
        if is_valid(config):
            yield config


def _writers(head_dims: tuple[int, ...], caches: tuple[Cache, ...]) -> Iterator[AttentionConfig]:
    """The cache writers for each kind of element."""
    for dtype, kv_dtype, head_dim, kv_cache in product(Dtype, KvDtype, head_dims, caches):
        yield AttentionConfig.of(
            mode=Mode.WRITE, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, cache=kv_cache
        )
