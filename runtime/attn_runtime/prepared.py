# SPDX-License-Identifier: Apache-2.0
"""The first call of a kind: check, plan, load and pack, so that repeats only write addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from attn_codegen.config import Arch, AttentionConfig, Mode, reduction_of
from attn_codegen.tiling import tiling, tilings
from attn_runtime import driver
from attn_runtime.arguments import (
    Call,
    Numbers,
    array_bytes,
    check_call,
    check_devices,
    check_workspace,
)
from attn_runtime.array_view import ArrayView
from attn_runtime.arrays import Adapter, Key
from attn_runtime.checks import Views
from attn_runtime.choose import choose
from attn_runtime.counters import counters_of
from attn_runtime.decode_launch import DecodeLaunch, counter_block
from attn_runtime.decode_plan import (
    DECODE_TOKENS,
    plan_decode,
    range_bytes,
    rank_decode,
)
from attn_runtime.driver import Context, Device
from attn_runtime.errors import ArgumentError, DriverError
from attn_runtime.kernel import Kernel, load, nominal_limits, on_device
from attn_runtime.kernel_folder import chosen_folder
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Exchange, Launch, PlannedCall
from attn_runtime.plan import DeviceLimits, Plan, Problem, SplitKind, SplitPolicy, plan
from attn_runtime.problem import INT_MAX
from attn_runtime.rounds import RoundsLaunch, round_count, share_of
from attn_runtime.settings import Settings, with_tile
from attn_runtime.tma_launch import TmaLaunch
from attn_runtime.workspace import aligned

_KEPT: Final = 1024
"""Kinds of calls that a thread remembers; the oldest is forgotten first."""

NumberKey = tuple[int | None, int | None, int | None, int | None]
"""The fields of Numbers."""
CallKey = tuple[list[Key | None], NumberKey, Context | None]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one device runs: the attention kernel and its reduction."""

    attention: Kernel
    reduction: Kernel


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that lacks its addresses. The shapes are those of results that are not given."""

    context: Context
    plan: Plan
    launch: Launch | RoundsLaunch
    out_shape: tuple[int, ...]
    out_dtype: str
    lse_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """One array argument of a call."""

    name: str
    adapter: Adapter
    key: Key
    address: int

    def describe(self) -> ArrayView:
        """The array as plain data."""
        return self.adapter.describe(self.key, self.name)


class Memory:
    """Calls that a thread has made before, by all that was checked then; the last one is found by
    a comparison alone."""

    __slots__ = ("_calls", "last_call", "last_key")

    def __init__(self) -> None:
        self._calls: dict[Any, Prepared] = {}
        self.last_key: CallKey | None = None
        self.last_call: Prepared

    def recall(self, key: CallKey) -> Prepared | None:
        """The call of a key, if it is kept."""
        keys, numbers, context = key
        try:
            return self._calls.get((tuple(keys), numbers, context))
        except TypeError:  # a number that is none, such as a list: refused with its name later
            return None

    def keep(self, key: CallKey, call: Prepared) -> None:
        """Make a call the last one, and remember it as long as there is room."""
        keys, numbers, context = key
        if len(self._calls) >= _KEPT:
            del self._calls[next(iter(self._calls))]
        self._calls[tuple(keys), numbers, context] = call
        self.last_key, self.last_call = key, call


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


def kernels_for(settings: Settings, problem: Problem, context: Context) -> Kernels:
    """The kernels that a call runs: the plan's choice of tile, compiled and loaded where needed."""
    problem = share_of(problem, round_count(settings, problem))
    configs = candidates(settings, context)
    limits = [nominal_limits(config, settings.tuning) for config in configs]
    device = _device_limits(context.device)
    if settings.config.mode is Mode.DECODE:
        ranks = [rank_decode(problem, device, kernel, settings.policy) for kernel in limits]
        kernels = load_kernels(configs[ranks.index(min(ranks))], context, settings.kernels)
        _reserve_counters(settings, kernels.attention, context)
        return kernels
    best = choose(problem, device, limits, settings.policy)
    return load_kernels(configs[best], context, settings.kernels)


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
    """Other bounds of query tokens cut the grid into other numbers of ranges."""
    device = _device_limits(context.device)
    for tokens in range(1, DECODE_TOKENS + 1):
        largest = Problem(
            token_num=tokens,
            batch_size=1,
            max_q_len=tokens,
            max_k_len=INT_MAX,
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim_v=settings.config.head_dim_v,
        )
        found = plan_decode(largest, device, kernel.limits, SplitPolicy.heuristic())
        if found.counter_cnt:
            counters_of(context, counter_block(found.counter_cnt))


def _device_limits(device: Device) -> DeviceLimits:
    return DeviceLimits(device.sm_count, shared_per_cta=device.shared_per_block)


def prepare_call(
    settings: Settings,
    given: Sequence[Given],
    numbers: Numbers,
    context: Context,
    exchange: Exchange | None = None,
) -> Prepared:
    """Everything that can be known before the addresses of the next call."""
    views = views_of(given, ARRAYS, context)
    check_devices(views, context.device.ordinal)
    call = check_call(settings, views, numbers)
    kernels = kernels_for(settings, call.problem, context)
    workspace = views.get("workspace")
    found = plan_call(settings, call.problem, kernels, context, workspace)
    if workspace is not None:
        check_workspace(workspace, found.workspace_bytes)
    q = views["q"]
    assert q is not None  # it was checked
    return Prepared(
        context=context,
        plan=found,
        launch=_make_launch(settings, call, kernels, found, exchange),
        out_shape=call.out_shape,
        out_dtype=q.dtype,
        lse_shape=call.lse_shape,
    )


def _make_launch(
    settings: Settings, call: Call, kernels: Kernels, found: Plan, exchange: Exchange | None
) -> Launch | RoundsLaunch:
    cache, config = settings.config.cache, settings.config
    assert cache is not None  # attention reads a cache: a rule of the space
    kind = _launch_of(kernels)
    planned = PlannedCall(kernels.attention, kernels.reduction, found, cache, call.values, exchange)
    rounds = round_count(settings, call.problem)
    if exchange is None or rounds == 1:
        return kind(planned)

    def make(values: Values) -> Launch:
        return kind(replace(planned, values=values, exchange=None))

    with kernels.attention.function.context:
        return RoundsLaunch(make, config, found, call.values, exchange, rounds)


def _launch_of(kernels: Kernels) -> type[Launch]:
    config = kernels.attention.config
    if config.mode is Mode.DECODE:
        return DecodeLaunch
    return TmaLaunch if config.arch is Arch.SM90 else Launch


def plan_call(
    settings: Settings,
    problem: Problem,
    kernels: Kernels,
    context: Context,
    workspace: ArrayView | None = None,
) -> Plan:
    """The plan on a device; of a call in rounds, that of one, with the workspace of all."""
    rounds = round_count(settings, problem)
    have = None if workspace is None else array_bytes(workspace) // rounds
    found = _plan_within(settings, share_of(problem, rounds), kernels, context, have)
    if rounds == 1:
        return found
    return replace(found, workspace_bytes=rounds * aligned(found.workspace_bytes))


def _plan_within(
    settings: Settings, problem: Problem, kernels: Kernels, context: Context, have: int | None
) -> Plan:
    """The heuristic splits no further than `have` bytes of workspace hold; other policies are taken
    at their word, and a workspace too small for them is refused later."""
    config, device = kernels.attention.config, _device_limits(context.device)
    cost = settings.tuning.cost(config)
    limits = replace(kernels.attention.limits, tile_ns=cost.tile_ns, step_ns=cost.step_ns)
    make = plan_decode if config.mode is Mode.DECODE else plan
    found = make(problem, device, limits, settings.policy)
    if have is None or settings.policy.kind is not SplitKind.HEURISTIC:
        return found
    if found.workspace_bytes <= have:
        return found
    # partial_O and partial_ML of one split or range, and the most that lies between and around
    split_bytes = problem.token_num * problem.num_heads * 4 * (problem.head_dim_v + 2)
    if settings.config.mode is Mode.DECODE:
        split_bytes = range_bytes(problem, found)
    unsplit_bytes = make(problem, device, limits, SplitPolicy.off()).workspace_bytes
    if unsplit_bytes:
        have -= unsplit_bytes + 255
    most = max(1, (have - 255) // split_bytes)
    return make(problem, device, limits, replace(settings.policy, max_split_k=most))


def views_of(given: Sequence[Given], names: Sequence[str], context: Context) -> Views:
    """The arrays of a call as plain data, None for one that is not given. Where the library does
    not say on which GPU an array is, the driver is asked."""
    views: dict[str, ArrayView | None] = dict.fromkeys(names)
    for item in given:
        view = item.describe()
        if view.ordinal is None:
            view = replace(view, ordinal=_ordinal(item.name, item.address, context))
        views[item.name] = view
    return views


def _ordinal(name: str, pointer: int, context: Context) -> int:
    """The GPU of an address; an empty array has none, and is anywhere."""
    return context_of(name, pointer).device.ordinal if pointer else context.device.ordinal


def context_of(name: str, pointer: int) -> Context:
    """The context of an argument, asked of the driver."""
    try:
        return driver.context_of_pointer(pointer)
    except DriverError as error:
        raise ArgumentError(name, f"{name}: {error}") from error
