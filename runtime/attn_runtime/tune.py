# SPDX-License-Identifier: Apache-2.0
"""Times the tiles of configurations on this machine and writes what they cost: `attn-codegen tune`.

Each tile runs the lengths of a grid, unsplit, in shuffled rounds beside the others. Two numbers are
fitted to its times, and moved where the plan would pick badly by them; the table shows what was
measured, and what the plan will pick.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from attn_codegen.config import Arch, AttentionConfig, Mask, Mode
from attn_codegen.prose import counted
from attn_codegen.tile import key_bytes
from attn_codegen.tiling import tiling, tilings
from attn_codegen.tuning import DEFAULT_TILE, TileCost, Tuning
from attn_runtime import driver
from attn_runtime.bench.device import Bench
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.key_stores import Setup
from attn_runtime.bench.ours import OurCall
from attn_runtime.bench.shapes import TOKENS, WIDTH, Heads, Shape, short
from attn_runtime.bench.timing import Schedule, measure
from attn_runtime.build import build
from attn_runtime.choose import choose
from attn_runtime.driver import Device
from attn_runtime.kernel import HOPPER, nominal_limits
from attn_runtime.problem import DeviceLimits, KernelLimits, Problem, SplitPolicy
from attn_runtime.tune_fit import Sample, Trial, fills, fit_cost, settle, worthwhile

Echo = Callable[[str], None]

LENGTHS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
FEW: Final = ((512, 512), (1024, 1024), (2048, 2048), (4096, 4096))
"""(length, tokens) of calls that leave much of the device idle: a check, no part of the fit."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to time. `base` is the file whose other configurations stay as they are."""

    configs: tuple[AttentionConfig, ...]
    base: Tuning
    command: str
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Row:
    """What the tiles of one configuration took on one shape, in milliseconds."""

    shape: Shape
    problem: Problem
    times: dict[str, float]


def run(request: Request, echo: Echo) -> Tuning:
    """Time every tile of every configuration; `echo` gets a table of each.

    Raises DriverError without a GPU, BenchError where this one runs none of the kernels, and what
    compiling and loading raise.
    """
    configs = _untiled(request.configs)
    if not configs:
        raise BenchError(
            "tiles are for the plan of prefill, and no prefill kernel was chosen: name some, or "
            "use --mode prefill"
        )
    context = driver.context_of_device(driver.current_device())
    configs = _served(configs, context.device, echo)
    costs = dict(request.base.costs)
    with context:
        build(tiled for config in configs for tiled in _tiles(config, context.device).values())
        bench = Bench(context)
        for config in configs:
            costs[config.name] = _tune(config, bench, request.schedule, echo)
    return Tuning(context.device.name, commands_of(request.base, configs, request.command), costs)


def commands_of(base: Tuning, configs: Iterable[AttentionConfig], command: str) -> str:
    """The command, behind those of the base where configurations of it stay as they are."""
    left = set(base.costs) - {config.name for config in configs}
    earlier = [line for line in base.command.split("; ") if line != command] if left else []
    return "; ".join([*earlier, command])


def _untiled(configs: Iterable[AttentionConfig]) -> list[AttentionConfig]:
    """Prefill configurations, each once; the tiles of one are timed together."""
    prefill = (config for config in configs if config.mode is Mode.PREFILL)
    return list(dict.fromkeys(replace(config, tile="") for config in prefill))


def _served(configs: list[AttentionConfig], device: Device, echo: Echo) -> list[AttentionConfig]:
    """Those that the device runs; how many are left out is said. Raises BenchError for none."""
    is_hopper = device.capability == HOPPER
    served = [config for config in configs if is_hopper or config.arch is not Arch.SM90]
    where = f"written for Hopper alone, and GPU {device.ordinal} is {device.name}"
    if not served:
        raise BenchError(f"the chosen kernels are {where}: choose others, such as --arch sm80")
    if left_out := len(configs) - len(served):
        echo(f"left out: {counted(left_out, 'kernel')}, {where}")
    return served


def _tiles(config: AttentionConfig, device: Device) -> dict[str, AttentionConfig]:
    """The tiles of a configuration that fit the device, by their words."""
    tiled = {word: replace(config, tile=word) for word in tilings(config)}
    return {
        word: one
        for word, one in tiled.items()
        if tiling(one).shared_bytes <= device.shared_per_block
    }


def _tune(
    config: AttentionConfig, bench: Bench, schedule: Schedule, echo: Echo
) -> dict[str, TileCost]:
    """The costs of the default tile, and of those that make some call faster than it is."""
    device = DeviceLimits(
        bench.context.device.sm_count, shared_per_cta=bench.context.device.shared_per_block
    )
    tiles = _tiles(config, bench.context.device)
    rows = [_time(config, tiles, shape, bench, schedule) for shape in shapes_of(config)]
    limits = {word: nominal_limits(one) for word, one in tiles.items()}
    for word, kernel in limits.items():
        samples = [Sample(row.problem, row.times[word] * 1e6) for row in rows]
        cost = fit_cost(samples, device, kernel)
        limits[word] = replace(kernel, tile_ns=cost.tile_ns, step_ns=cost.step_ns)
    kept = worthwhile([row.times for row in rows])
    limits = {word: kernel for word, kernel in limits.items() if word in kept}
    limits = settle(limits, [Trial(row.problem, row.times) for row in rows], device)
    for line in report(config, rows, limits, device):
        echo(line)
    return {word: TileCost(kernel.tile_ns, kernel.step_ns) for word, kernel in limits.items()}


def shapes_of(config: AttentionConfig) -> list[Shape]:
    """Long calls that fill the device, and a few that do not."""
    assert config.mask is not None  # prefill has one
    count = max(1, WIDTH // config.head_dim)
    heads = Heads(count, count, config.head_dim, config.head_dim_v)
    sizes = [*((length, TOKENS) for length in LENGTHS), *FEW]
    return [
        Shape(lens, lens, heads, config.mask, f"{short(tokens)} tokens", short(length))
        for length, tokens in sizes
        for lens in [(length,) * (tokens // length)]
    ]


def _time(
    config: AttentionConfig,
    tiles: dict[str, AttentionConfig],
    shape: Shape,
    bench: Bench,
    schedule: Schedule,
) -> Row:
    """All tiles on one shape."""
    assert config.cache is not None  # prefill reads one
    calls = {
        word: OurCall(
            bench,
            shape,
            Setup(config.dtype, config.cache, arch=config.arch, tile=_given(word), split="off"),
        )
        for word in tiles
    }
    times = measure(calls, bench, schedule, random.Random(shape.token_num))
    return Row(shape, _problem(config, shape), times)


def _given(word: str) -> str:
    return word or DEFAULT_TILE


def _problem(config: AttentionConfig, shape: Shape) -> Problem:
    return Problem(
        token_num=shape.token_num,
        batch_size=shape.batch_size,
        max_q_len=max(shape.q_lens),
        max_k_len=max(shape.k_lens),
        num_heads=shape.heads.num_heads,
        num_kv_heads=shape.heads.num_kv_heads,
        head_dim_v=shape.heads.value_dim,
        causal=config.mask is Mask.CAUSAL,
        key_bytes=key_bytes(config),
    )


def report(
    config: AttentionConfig,
    rows: Sequence[Row],
    limits: dict[str, KernelLimits],
    device: DeviceLimits,
) -> Iterator[str]:
    """TFLOP/s of the tiles that are kept, by shape; the picked one, and what it loses to the best
    of all."""
    words = list(limits)
    yield f"{config.name}: " + ", ".join(
        f"{_given(word)} {kernel.tile_ns} + {kernel.step_ns} ns" for word, kernel in limits.items()
    )
    for row in rows:
        best = min(row.times.values())
        pick = words[choose(row.problem, device, list(limits.values()), SplitPolicy.off())]
        rates = "  ".join(
            f"{_given(word)} {row.shape.flops / row.times[word] / 1e9:4.0f}" for word in words
        )
        full = "" if fills(row.problem, device, limits[""]) else "  (not in the fit)"
        loss = 100 * (row.times[pick] / best - 1)
        yield (
            f"  {row.shape.row:>10} x {row.shape.column:<4} {rates}  takes {_given(pick)}, "
            f"{loss:.1f} % from the best{full}"
        )
