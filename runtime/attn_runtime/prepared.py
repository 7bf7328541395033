# SPDX-License-Identifier: Apache-2.0
"""The first call of a kind: check, plan, load and pack, so that repeats only write addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_runtime.arguments import (
    Call,
    Numbers,
    array_bytes,
    check_call,
    check_devices,
    check_workspace,
)
from attn_runtime.array_view import ArrayView
from attn_runtime.checks import Views
from attn_runtime.decode_launch import DecodeLaunch
from attn_runtime.decode_plan import plan_decode
from attn_runtime.driver import Context
from attn_runtime.given import Given, views_of
from attn_runtime.kernel import Kernel
from attn_runtime.kernels import Kernels, device_limits, kernels_for
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Exchange, Launch, PlannedCall
from attn_runtime.many_rows import plan_many_rows, room_for
from attn_runtime.plan import KernelLimits, Plan, Problem, plan
from attn_runtime.plan_within import plan_within
from attn_runtime.rounds import RoundsLaunch, round_count, share_of
from attn_runtime.settings import Settings
from attn_runtime.tma_launch import TmaLaunch
from attn_runtime.workspace import WORKSPACE_ALIGNMENT, aligned

_OF_DECODE_ALONE: Final = ("sinks", "k_new", "v_new")


class Planned(NamedTuple):
    """How a call is cut, and for which kernel."""

    kernel: Kernel
    plan: Plan


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that lacks its addresses. The shapes are those of results that are not given."""

    context: Context
    plan: Plan
    launch: Launch | RoundsLaunch
    out_shape: tuple[int, ...]
    out_dtype: str
    lse_shape: tuple[int, ...]


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
    kernels = kernels_for(settings, call.problem, context, is_plain=_is_plain(views))
    workspace = views.get("workspace")
    planned = plan_call(settings, call.problem, kernels, context, workspace)
    if workspace is not None:
        check_workspace(workspace, planned.plan.workspace_bytes)
    q = views["q"]
    assert q is not None  # it was checked
    return Prepared(
        context=context,
        plan=planned.plan,
        launch=_make_launch(settings, call, planned, kernels.reduction, exchange),
        out_shape=call.out_shape,
        out_dtype=q.dtype,
        lse_shape=call.lse_shape,
    )


def _is_plain(views: Views) -> bool:
    """Whether a decode call is one that a prefill kernel computes as well: it asks for attention
    alone, and over rows that lie apart, as TMA needs them."""
    rows = [views.get("k"), views.get("v")]
    return all(views.get(name) is None for name in _OF_DECODE_ALONE) and all(
        step > 0 or extent <= 1
        for view in rows
        if view is not None
        for extent, step in zip(view.shape, view.strides, strict=True)
    )


def _make_launch(
    settings: Settings,
    call: Call,
    planned: Planned,
    reduction: Kernel,
    exchange: Exchange | None,
) -> Launch | RoundsLaunch:
    cache, config = settings.config.cache, settings.config
    assert cache is not None  # attention reads a cache: a rule of the space
    kernel, found = planned
    kind = _launch_of(kernel.config)
    whole = PlannedCall(kernel, reduction, found, cache, call.values, exchange)
    rounds = round_count(settings, call.problem)
    if exchange is None or rounds == 1:
        return kind(whole)

    def make(values: Values) -> Launch:
        return kind(replace(whole, values=values, exchange=None))

    with kernel.function.context:
        return RoundsLaunch(make, config, found, call.values, exchange, rounds)


def _launch_of(config: AttentionConfig) -> type[Launch]:
    if config.mode is Mode.DECODE:
        return DecodeLaunch
    return TmaLaunch if config.arch is Arch.SM90 else Launch


def plan_call(
    settings: Settings,
    problem: Problem,
    kernels: Kernels,
    context: Context,
    workspace: ArrayView | None = None,
) -> Planned:
    """The plan on a device; of a call in rounds, that of one, with the workspace of all."""
    rounds = round_count(settings, problem)
    have = None if workspace is None else array_bytes(workspace) // rounds
    problem = share_of(problem, rounds)
    found = _plan_within(settings, problem, kernels, context, have)
    if kernels.many_rows is not None:
        device, limits = device_limits(context.device), _limits_of(settings, kernels.many_rows)
        room = room_for(problem, device, settings.policy)
        taken = plan_many_rows(problem, device, limits, found, room)
        if have is not None and taken.workspace_bytes > have:
            row_bytes = 4 * (problem.head_dim_v + 2)
            room = max(have - WORKSPACE_ALIGNMENT, 0) // row_bytes
            taken = plan_many_rows(problem, device, limits, found, room)
        return Planned(kernels.many_rows, taken)
    if rounds > 1:
        found = replace(found, workspace_bytes=rounds * aligned(found.workspace_bytes))
    return Planned(kernels.attention, found)


def _plan_within(
    settings: Settings, problem: Problem, kernels: Kernels, context: Context, have: int | None
) -> Plan:
    config, device = kernels.attention.config, device_limits(context.device)
    make = plan_decode if config.mode is Mode.DECODE else plan
    limits = _limits_of(settings, kernels.attention)
    return plan_within(make, problem, device, limits, settings.policy, have)


def _limits_of(settings: Settings, kernel: Kernel) -> KernelLimits:
    """As the kernel is on the device, and what its tiles cost."""
    cost = settings.tuning.cost(kernel.config)
    return replace(kernel.limits, tile_ns=cost.tile_ns, step_ns=cost.step_ns)
