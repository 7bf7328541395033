# SPDX-License-Identifier: Apache-2.0
"""Which kernels a device runs a call with, compiled and loaded where that is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from attn_codegen.config import Arch, AttentionConfig, Cache, KvDtype, Mode, reduction_of
from attn_codegen.tiling import tiling, tilings
from attn_runtime.choose import UNFIT, choose
from attn_runtime.counters import counter_block, counters_of
from attn_runtime.decode_plan import DECODE_TOKENS, plan_decode, rank_decode
from attn_runtime.driver import Context, Device
from attn_runtime.kernel import Kernel, load, nominal_limits, on_device
from attn_runtime.kernel_folder import chosen_folder
from attn_runtime.many_rows import (
    MOST_DECODE_ROWS,
    MOST_TILE_ROWS,
    has_many_rows,
    rank_many_rows,
)
from attn_runtime.plan import DeviceLimits, Problem, SplitPolicy
from attn_runtime.problem import INT_MAX
from attn_runtime.rounds import round_count, share_of
from attn_runtime.settings import Settings, with_tile


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one device runs: the attention kernel and its reduction. A decode call of many rows is
    taken by a prefill kernel, `many_rows`; `attention` is the decode kernel all the same.
    """

    attention: Kernel
    reduction: Kernel
    many_rows: Kernel | None = None


def candidates(settings: Settings, context: Context) -> tuple[AttentionConfig, ...]:
    """The kernels among which a plan picks on a device: one for each tile that fits there."""
    config = settings.config
    if not settings.is_arch_fixed:
        config = on_device(config, context.device)
    if settings.tile is not None:
        return (with_tile(config, settings.tile),)
    is_decode = config.mode is Mode.DECODE
    words = tilings(config) if is_decode else settings.tuning.of(config)
    tiles = [replace(config, tile=word) for word in words]
    fit = [tiled for tiled in tiles if _fits(tiled, context.device)]
    fit = _exported(fit, settings.kernels, context.device) or fit
    return tuple(fit or tiles[:1])  # the default one is refused with its reason when it is loaded


def _exported(
    configs: list[AttentionConfig], path: Path | None, device: Device
) -> list[AttentionConfig]:
    """Those that the folder of exported kernels holds; all of them where there is no folder."""
    folder = chosen_folder(path)
    return configs if folder is None else [c for c in configs if folder.has(c, device.target)]


def _fits(config: AttentionConfig, device: Device) -> bool:
    return tiling(config).shared_bytes <= device.shared_per_block


def kernels_for(
    settings: Settings, problem: Problem, context: Context, *, is_plain: bool = True
) -> Kernels:
    """The kernels that a call runs: the plan's choice of tile, compiled and loaded where needed.
    A call that is not plain asks for what decode kernels alone do.
    """
    problem = share_of(problem, round_count(settings, problem))
    configs = candidates(settings, context)
    limits = [nominal_limits(config, settings.tuning) for config in configs]
    device = device_limits(context.device)
    if settings.config.mode is Mode.DECODE:
        ranks = [rank_decode(problem, device, kernel, settings.policy) for kernel in limits]
        kernels = load_kernels(configs[ranks.index(min(ranks))], context, settings.kernels)
        _reserve_counters(settings, kernels.attention, context)
        prefill = None
        if is_plain:
            prefill = _many_rows_config(settings, problem, kernels.attention, context)
        if prefill is None:
            return kernels
        taker = load_kernels(prefill, context, settings.kernels).attention
        return replace(kernels, many_rows=taker)
    best = choose(problem, device, limits, settings.policy)
    return load_kernels(configs[best], context, settings.kernels)


def many_rows_candidates(settings: Settings, context: Context) -> tuple[AttentionConfig, ...]:
    """The prefill kernels among which a decode call of many rows picks on a device: one for each
    height of tiles up to MOST_TILE_ROWS. None where the caller names a tile, nor over a linear
    cache with a window, in front of which prefill has rows to clear, nor over e4m3, of which
    prefill takes fewer scales."""
    own = candidates(settings, context)[0]
    group = settings.num_heads // settings.num_kv_heads
    hides_rows = own.cache is Cache.LINEAR and settings.window_size > 0
    if (
        own.mode is not Mode.DECODE
        or own.arch is not Arch.SM90
        or own.kv_dtype is KvDtype.E4M3
        or settings.tile is not None
        or group * DECODE_TOKENS <= MOST_DECODE_ROWS
        or hides_rows
    ):
        return ()
    prefill = replace(own, mode=Mode.PREFILL, tile="")
    heights: dict[int, AttentionConfig] = {}
    for word, tile in tilings(prefill).items():
        if tile.cta_q <= MOST_TILE_ROWS:
            heights.setdefault(tile.cta_q, replace(prefill, tile=word))
    folder = chosen_folder(settings.kernels)
    target = context.device.target
    return tuple(c for c in heights.values() if folder is None or folder.has(c, target))


def _many_rows_config(
    settings: Settings, problem: Problem, decode: Kernel, context: Context
) -> AttentionConfig | None:
    """The prefill kernel that takes a decode call of many rows."""
    over_codes = decode.config.kv_dtype is not KvDtype.SAME
    if not has_many_rows(problem, decode.limits, settings.policy, over_codes=over_codes):
        return None
    device, policy = device_limits(context.device), settings.policy
    configs = many_rows_candidates(settings, context)
    limits = [nominal_limits(config, settings.tuning) for config in configs]
    ranks = [rank_many_rows(problem, device, kernel, policy) for kernel in limits]
    least = min(ranks, default=UNFIT)
    return None if least == UNFIT else configs[ranks.index(least)]


def load_kernels(config: AttentionConfig, context: Context, folder: Path | None = None) -> Kernels:
    """Compile and load a kernel and its reduction, where that has not been done."""
    kernels = Kernels(load(config, context, folder), load(reduction_of(config), context, folder))
    if kernels.attention.tiling.persistent:
        counters_of(context)  # allocated here, so that no call and no graph capture has to
    return kernels


def reserve_counters(settings: Settings, config: AttentionConfig, context: Context) -> None:
    """Allocate what the calls of a decode kernel count in, so that no call and no graph capture has
    to."""
    _reserve_counters(settings, load_kernels(config, context, settings.kernels).attention, context)


def _reserve_counters(settings: Settings, kernel: Kernel, context: Context) -> None:
    """Other bounds of query tokens cut the grid into other numbers of ranges, and few sequences
    into half as many."""
    device = device_limits(context.device)
    batch = device.sm_count + 1  # of which there are not few, whatever their heads
    for tokens in range(1, DECODE_TOKENS + 1):
        largest = Problem(
            token_num=batch * tokens,
            batch_size=batch,
            max_q_len=tokens,
            max_k_len=INT_MAX // batch,
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim_v=settings.config.head_dim_v,
        )
        found = plan_decode(largest, device, kernel.limits, SplitPolicy.heuristic())
        if found.counter_cnt:
            counters_of(context, counter_block(found.counter_cnt))


def device_limits(device: Device) -> DeviceLimits:
    return DeviceLimits(device.sm_count, shared_per_cta=device.shared_per_block)
