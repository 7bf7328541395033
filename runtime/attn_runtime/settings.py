# SPDX-License-Identifier: Apache-2.0
"""What all calls of one Attention share, checked when it is built: words become types here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Final

from attn_codegen import rules, space
from attn_codegen.config import (
    AXES,
    Arch,
    AttentionConfig,
    Cache,
    Dtype,
    KvDtype,
    Mask,
    Mode,
    axis_value,
)
from attn_codegen.errors import ConfigError
from attn_codegen.prose import join_words
from attn_codegen.tuning import DEFAULT_TILE, Tuning, read, shipped
from attn_runtime.checks import need_int
from attn_runtime.errors import ArgumentError
from attn_runtime.problem import SplitKind, SplitPolicy
from attn_runtime.ranks import ONE_RANK, Ranks

FLOAT_MAX: Final = 3.4028234663852886e38
FLOAT_MIN: Final = 2.0**-149

_POLICIES: Final = {"heuristic": SplitPolicy.heuristic(), "off": SplitPolicy.off()}


@dataclass(frozen=True, slots=True)
class Settings:
    """The kernel's configuration, and the numbers that every call carries. Unless `is_arch_fixed`,
    `config.arch` is the least family, and a device may be served by a later one. `tile` is the word
    of the tile that every call takes; None lets the plan pick one for each, by `tuning`."""

    config: AttentionConfig
    is_arch_fixed: bool
    num_heads: int
    num_kv_heads: int
    window_size: int
    softmax_scale: float
    policy: SplitPolicy
    tile: str | None
    tuning: Tuning
    ranks: Ranks = ONE_RANK
    kernels: Path | None = None
    """A folder of exported kernels."""


def make_settings(
    *,
    num_heads: int,
    num_kv_heads: int | None,
    head_dim: int,
    head_dim_v: int | None,
    dtype: Dtype | str,
    cache: Cache | str,
    mask: Mask | str,
    window_size: int,
    softmax_scale: float | None,
    split: SplitPolicy | str,
    arch: Arch | str | None = None,
    ranks: Ranks = ONE_RANK,
    tile: str | None = None,
    tuning: Tuning | Path | str | None = None,
    mode: Mode | str = Mode.PREFILL,
    kernels: str | os.PathLike[str] | None = None,
    kv_dtype: KvDtype | str = KvDtype.SAME,
) -> Settings:
    """Check and convert. Raises ConfigError for a combination that no kernel serves, with the
    rules' reasons and the nearest that work, and ArgumentError for a number out of range."""
    config = config_of(
        mode=_attention_mode(mode),
        arch=Arch.SM80 if arch is None else arch,
        dtype=dtype,
        kv_dtype=kv_dtype,
        head_dim=head_dim,
        head_dim_v=head_dim if head_dim_v is None else head_dim_v,
        cache=cache,
        mask=mask,
    )
    word = tile_of(tile)
    refuse_unsupported(config)
    _refuse_unknown_tile(config, word or "", rules.ARCHES if arch is None else (config.arch,))
    heads = need_int("num_heads", num_heads, least=1)
    kv_heads = heads if num_kv_heads is None else need_int("num_kv_heads", num_kv_heads, least=1)
    if heads % kv_heads:
        raise ArgumentError(
            "num_kv_heads",
            f"num_kv_heads is {kv_heads}: it must divide num_heads, which is {heads}",
        )
    scale = _scale(softmax_scale, config.head_dim)
    return Settings(
        config=config,
        is_arch_fixed=arch is not None,
        num_heads=heads,
        num_kv_heads=kv_heads,
        window_size=_window(window_size),
        softmax_scale=scale,
        policy=_policy(split),
        ranks=ranks,
        tile=word,
        tuning=_tuning(tuning),
        kernels=_kernel_folder(kernels),
    )


def _attention_mode(mode: Mode | str) -> Mode:
    taken = (Mode.PREFILL, Mode.DECODE)
    if mode not in taken:
        raise ConfigError(f"mode {mode!s} is not attention: use {join_words(taken)}")
    return axis_value(Mode, "mode", mode)


def config_of(**axes: Any) -> AttentionConfig:
    """AttentionConfig.of, where None is not the default but a mistake. Raises ConfigError."""
    for axis, value in axes.items():
        if value is None:
            allowed = f"use {join_words(AXES[axis])}" if axis in AXES else rules.HEAD_DIM_HINT
            raise ConfigError(f"{axis} is None: {allowed}")
    return AttentionConfig.of(**axes)


def refuse_unsupported(config: AttentionConfig) -> None:
    """Raise ConfigError when a rule refuses the configuration: what, why, and what works."""
    reasons: dict[str, list[str]] = {}  # several rules may fail with one hint
    for verdict in rules.evaluate(config):
        if not verdict.passed:
            reasons.setdefault(verdict.message, []).append(verdict.rule.reason)
    if reasons:
        faults = "; ".join(f"{said}, since {'; and '.join(why)}" for said, why in reasons.items())
        near = ", ".join(other.name for other in space.nearest(config))
        raise ConfigError(f"{faults}. Nearest valid configurations to {config.name}: {near}")


def _refuse_unknown_tile(config: AttentionConfig, tile: str, arches: Iterable[Arch]) -> None:
    """Raise ConfigError for a tile that the configuration has in none of the families."""
    tiled = [replace(config, arch=arch, tile=tile) for arch in arches]
    if not any(map(rules.is_valid, tiled)):
        refuse_unsupported(tiled[-1])


def with_tile(config: AttentionConfig, tile: str) -> AttentionConfig:
    """The configuration with another tile. Raises ConfigError where there is no such tile."""
    tiled = replace(config, tile=tile)
    refuse_unsupported(tiled)
    return tiled


def tile_of(tile: Any) -> str | None:
    """The tile axis of a configuration, from what users write; None for none."""
    if tile is None or tile == DEFAULT_TILE:
        return None if tile is None else ""
    if not isinstance(tile, str) or not tile:
        raise ArgumentError(
            "tile",
            f"tile is {tile!r}: give a tile word such as t128x128 (`attn-codegen show` lists "
            f"them), {DEFAULT_TILE!r}, or leave it out for the one that the plan picks",
        )
    return tile


def _tuning(given: Any) -> Tuning:
    """What tiles cost: the package's file unless a user gives one."""
    if given is None:
        return shipped()
    if isinstance(given, str | Path):
        return read(Path(given))
    if not isinstance(given, Tuning):
        raise ArgumentError(
            "tuning",
            f"tuning is {given!r}: give the path of a file that attn-codegen tune wrote, or leave "
            "it out",
        )
    return given


def _kernel_folder(given: Any) -> Path | None:
    """A folder of exported kernels, read when a call needs one of them."""
    if given is not None and not isinstance(given, str | os.PathLike):
        raise ArgumentError(
            "kernels",
            f"kernels is {given!r}: give the path of a folder that attn-codegen build --export "
            "wrote, or leave it out",
        )
    return None if given is None else Path(given)


def _window(value: int) -> int:
    if value == -1:
        raise ArgumentError("window_size", "window_size is -1: give 0 for no window")
    return need_int("window_size", value)


def _scale(value: float | None, head_dim: int) -> float:
    """1 / sqrt(head_dim) unless given; the kernels take a float above 0."""
    if value is None:
        return 1.0 / math.sqrt(head_dim)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not FLOAT_MIN <= float(value) <= FLOAT_MAX:  # NaN fails every comparison
        raise ArgumentError(
            "softmax_scale",
            f"softmax_scale is {value!r}: it must be a finite float above 0, usually "
            f"1 / sqrt(head_dim) = {1.0 / math.sqrt(head_dim):.6g}",
        )
    return float(value)


def _policy(split: Any) -> SplitPolicy:
    policy = _POLICIES.get(split) if isinstance(split, str) else split
    if not isinstance(policy, SplitPolicy):
        raise ArgumentError(
            "split",
            f"split is {split!r}: use 'heuristic', 'off', SplitPolicy.fixed(splits) or "
            "SplitPolicy.fixed_size(tokens)",
        )
    need_int("split", policy.max_split_k, what="max_split_k of split")
    if policy.kind in (SplitKind.FIXED, SplitKind.FIXED_SIZE):
        what = f"the value of SplitPolicy.{policy.kind.name.lower()}"
        need_int("split", policy.value, least=1, what=what)
    return policy


def device_ordinal(device: Any) -> int | None:
    """The GPU of an int, a word such as cuda:1, or a device of torch or CuPy; None: the current."""
    if device is None:
        return None
    for name in ("index", "id"):  # torch.device, cupy.cuda.Device
        if isinstance(getattr(device, name, None), int):
            device = getattr(device, name)
            break
    if str(device) == "cuda":  # torch's word for the current one
        return None
    if isinstance(device, str) and device.startswith("cuda:") and device[5:].isdecimal():
        device = int(device[5:])
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise ArgumentError(
            "device", f"device is {device!r}: give the number of a GPU, from 0, or leave it out"
        )
    return device
