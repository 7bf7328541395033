# SPDX-License-Identifier: Apache-2.0
"""The first call of a kind: check, plan, load and pack, so that repeats only write addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attn_codegen.config import Arch, Mode
from attn_runtime.arguments import (
    Call,
    Numbers,
    array_bytes,
    check_call,
    check_devices,
    check_workspace,
)
from attn_runtime.array_view import ArrayView
from attn_runtime.decode_launch import DecodeLaunch
from attn_runtime.decode_plan import plan_decode
from attn_runtime.driver import Context
from attn_runtime.given import Given, views_of
from attn_runtime.kernels import Kernels, device_limits, kernels_for
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Exchange, Launch, PlannedCall
from attn_runtime.plan import Plan, Problem, plan
from attn_runtime.plan_within import plan_within
from attn_runtime.rounds import RoundsLaunch, round_count, share_of
from attn_runtime.settings import Settings
from attn_runtime.tma_launch import TmaLaunch
from attn_runtime.workspace import aligned


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
    config = kernels.attention.config
    cost = settings.tuning.cost(config)
    limits = replace(kernels.attention.limits, tile_ns=cost.tile_ns, step_ns=cost.step_ns)
    make = plan_decode if config.mode is Mode.DECODE else plan
    return plan_within(make, problem, device_limits(context.device), limits, settings.policy, have)
