# SPDX-License-Identifier: Apache-2.0
"""The one table of rules that say which configurations exist, each with a reason and a hint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from attn_codegen.config import Arch, AttentionConfig, Cache, KvDtype, Mask, Mode
from attn_codegen.prose import join_words
from attn_codegen.tiling import tilings

HEAD_DIM_STEP: Final = 16
HEAD_DIM_MAX: Final = 256
HEAD_DIMS: Final = tuple(range(HEAD_DIM_STEP, HEAD_DIM_MAX + 1, HEAD_DIM_STEP))
HEAD_DIM_HINT: Final = f"use a multiple of {HEAD_DIM_STEP} up to {HEAD_DIM_MAX}"
INT4_STEP: Final = 32
ATTENTION_MODES: Final = (Mode.PREFILL, Mode.DECODE)
ARCHES: Final = (Arch.SM80, Arch.SM90)

_QUANTISED: Final = frozenset(
    {
        *((mode, Arch.SM80) for mode in (Mode.PREFILL, Mode.DECODE, Mode.WRITE)),
        *((mode, Arch.SM90) for mode in (Mode.PREFILL, Mode.DECODE)),
    }
)
"""The modes and families that have kernels for quantised caches."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named condition; its reason holds whether or not it passes, its hint is for a failure."""

    id: str
    axis: str
    """The axis at fault."""
    beside: str
    """The axis that the fault is stated for; empty when the value alone decides."""
    reason: str
    hint: str
    check: Callable[[AttentionConfig], bool]
    alternatives: Callable[[AttentionConfig], str] | None = None
    """What goes behind the hint of a failure: the values that are near."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says of one configuration."""

    rule: Rule
    config: AttentionConfig
    passed: bool

    @property
    def hint(self) -> str:
        """What to do, with the values that are near where the rule fails."""
        if self.passed or self.rule.alternatives is None:
            return self.rule.hint
        return f"{self.rule.hint} ({self.rule.alternatives(self.config)})"

    @property
    def message(self) -> str:
        """The refusal in one line: what, got, allowed, next."""
        axes = self.config.axes()
        got = f"{self.rule.axis} {_word(axes[self.rule.axis])}"
        where = f" for {_word(axes[self.rule.beside])}" if self.rule.beside else ""
        return f"{got} is not supported{where}: {self.hint}"


def _is_reduce(config: AttentionConfig) -> bool:
    return config.mode is Mode.REDUCE


def _is_quantised(config: AttentionConfig) -> bool:
    return config.kv_dtype is not KvDtype.SAME


def _fits_fragments(config: AttentionConfig) -> bool:
    """A fragment of 16 columns of 16 bits, read whole, holds more columns of codes."""
    columns = {KvDtype.INT8: 32, KvDtype.E4M3: 32, KvDtype.INT4: 64}.get(config.kv_dtype, 16)
    return config.head_dim % columns == 0


def _tile_is_known(config: AttentionConfig) -> bool:
    if not config.tile:
        return True
    untiled = replace(config, tile="")
    return is_valid(untiled) and config.tile in tilings(untiled)


def _tile_words(config: AttentionConfig) -> str:
    untiled = replace(config, tile="")
    words = [word for word in tilings(untiled) if word] if is_valid(untiled) else []
    return f"{untiled.name} has {', '.join(words) or 'no other'}"


def _near_widths(config: AttentionConfig) -> str:
    return f"nearest: {', '.join(map(str, _nearest_head_dims(config.head_dim)))}"


def _near_widths_of_v(config: AttentionConfig) -> str:
    return f"nearest: {', '.join(map(str, _nearest_head_dims(config.head_dim_v)))}"


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "arch-emitted",
        "arch",
        "",
        "sm80 kernels serve every GPU from compute capability 8.0 on, sm90 kernels Hopper alone",
        f"use {join_words(ARCHES)}",
        lambda c: c.arch in ARCHES,
    ),
    Rule(
        "reduce-one-arch",
        "arch",
        "mode",
        "the reduction has nothing to gain from later instructions, so one unit serves every GPU",
        "use sm80",
        lambda c: not _is_reduce(c) or c.arch is Arch.SM80,
    ),
    Rule(
        "write-one-arch",
        "arch",
        "mode",
        "a writer waits for memory, and later instructions would not make it faster",
        "use sm80",
        lambda c: c.mode is not Mode.WRITE or c.arch is Arch.SM80,
    ),
    Rule(
        "write-has-no-mask",
        "mask",
        "mode",
        "every new row is written, whoever sees it",
        "leave mask out",
        lambda c: c.mode is not Mode.WRITE or c.mask is None,
    ),
    Rule(
        "decode-one-width",
        "head_dim_v",
        "mode",
        "a decode kernel keeps rows of K and of V in pieces of one size",
        "leave head_dim_v out, or use prefill, which takes one query as well",
        lambda c: c.mode is not Mode.DECODE or c.head_dim_v == c.head_dim,
    ),
    Rule(
        "decode-causal",
        "mask",
        "mode",
        "the new tokens of a sequence see those before them; with one token causal and full agree",
        "use causal, or prefill, which has the full mask",
        lambda c: c.mode is not Mode.DECODE or c.mask is not Mask.FULL,
    ),
    Rule(
        "kv-dtype-emitted",
        "kv_dtype",
        "mode",
        "a quantised cache takes kernels that convert its codes; they are written for "
        + ", ".join(sorted(f"{mode} on {arch}" for mode, arch in _QUANTISED)),
        f"use {KvDtype.SAME}",
        lambda c: not _is_quantised(c) or (c.mode, c.arch) in _QUANTISED,
    ),
    Rule(
        "quantised-one-width",
        "head_dim_v",
        "kv_dtype",
        "the codes of K and of V are converted by the same threads",
        "leave head_dim_v out, or use kv_dtype same",
        lambda c: not _is_quantised(c) or c.head_dim_v == c.head_dim,
    ),
    Rule(
        "decode-codes-width",
        "head_dim",
        "kv_dtype",
        "decode reads codes as fragments of 16 columns of 16 bits, 32 of int8 and e4m3, 64 of int4",
        "use a multiple of 64 (or 32 of int8 and e4m3), or kv_dtype same",
        lambda c: c.mode is not Mode.DECODE or c.head_dim % 16 != 0 or _fits_fragments(c),
    ),
    Rule(
        "int4-head-dim",
        "head_dim",
        "kv_dtype",
        "rows of codes are read 16 bytes at a time, which hold 32 codes of int4",
        f"use a multiple of {INT4_STEP}, or kv_dtype int8",
        lambda c: c.kv_dtype is not KvDtype.INT4 or c.head_dim % INT4_STEP == 0,
    ),
    Rule(
        "head-dim-range",
        "head_dim",
        "dtype",
        f"tensor cores take {HEAD_DIM_STEP} columns at a time, and accumulators of {HEAD_DIM_MAX} "
        "columns fill the registers",
        HEAD_DIM_HINT,
        lambda c: HEAD_DIM_STEP <= c.head_dim <= HEAD_DIM_MAX,
        alternatives=_near_widths,
    ),
    Rule(
        "head-dim-step",
        "head_dim",
        "dtype",
        f"mma.sync m16n8k16 consumes {HEAD_DIM_STEP} elements of a row at a time",
        HEAD_DIM_HINT,
        lambda c: c.head_dim % HEAD_DIM_STEP == 0,
        alternatives=_near_widths,
    ),
    Rule(
        "head-dim-v-range",
        "head_dim_v",
        "dtype",
        f"accumulators of {HEAD_DIM_MAX} columns of the output fill the registers",
        HEAD_DIM_HINT,
        lambda c: c.head_dim_v == c.head_dim or HEAD_DIM_STEP <= c.head_dim_v <= HEAD_DIM_MAX,
        alternatives=_near_widths_of_v,
    ),
    Rule(
        "head-dim-v-step",
        "head_dim_v",
        "dtype",
        f"tensor cores take {HEAD_DIM_STEP} columns of V at a time",
        HEAD_DIM_HINT,
        lambda c: c.head_dim_v == c.head_dim or c.head_dim_v % HEAD_DIM_STEP == 0,
        alternatives=_near_widths_of_v,
    ),
    Rule(
        "block-one-width",
        "head_dim_v",
        "cache",
        "the block layout stores rows of K and of V at one width",
        "leave head_dim_v out, or use the linear or paged cache",
        lambda c: c.cache is not Cache.BLOCK or c.head_dim_v == c.head_dim,
    ),
    Rule(
        "mode-has-cache",
        "cache",
        "mode",
        "every mode but reduce reads or writes a KV cache",
        f"use {join_words(Cache)}",
        lambda c: _is_reduce(c) or c.cache is not None,
    ),
    Rule(
        "attention-has-mask",
        "mask",
        "mode",
        "prefill and decode must know which keys a query sees",
        f"use {join_words(Mask)}",
        lambda c: c.mode not in ATTENTION_MODES or c.mask is not None,
    ),
    Rule(
        "reduce-has-no-cache",
        "cache",
        "mode",
        "the reduction reads partial outputs only, so one unit serves every cache",
        "leave cache out",
        lambda c: not _is_reduce(c) or c.cache is None,
    ),
    Rule(
        "reduce-has-no-mask",
        "mask",
        "mode",
        "the mask was applied before the partial outputs were written",
        "leave mask out",
        lambda c: not _is_reduce(c) or c.mask is None,
    ),
    Rule(
        "reduce-one-width",
        "head_dim_v",
        "mode",
        "the reduction sees output rows only; its head_dim is the head_dim_v of the attention",
        "give that width as head_dim, and leave head_dim_v out",
        lambda c: not _is_reduce(c) or c.head_dim_v == c.head_dim,
    ),
    Rule(
        "tile-known",
        "tile",
        "",
        "each tile is a kernel of its own, and some configurations have several",
        "leave tile out for the default one, or use one that `attn-codegen show` lists",
        _tile_is_known,
        alternatives=_tile_words,
    ),
)


def evaluate(config: AttentionConfig) -> tuple[Verdict, ...]:
    """The verdict of every rule, in the order of RULES."""
    return tuple(Verdict(rule, config, rule.check(config)) for rule in RULES)


def faults(config: AttentionConfig) -> tuple[str, ...]:
    """The message of every rule that fails, each sentence once."""
    said = (verdict.message for verdict in evaluate(config) if not verdict.passed)
    return tuple(dict.fromkeys(said))


def is_valid(config: AttentionConfig) -> bool:
    """True when a kernel exists for the configuration."""
    return all(rule.check(config) for rule in RULES)


def _word(value: str | int | None) -> str:
    return "none" if value is None else str(value)


def _nearest_head_dims(value: int) -> tuple[int, ...]:
    """The supported widths just below and just above the one asked for."""
    below = [width for width in HEAD_DIMS if width < value][-1:]
    above = [width for width in HEAD_DIMS if width > value][:1]
    return (*below, *above)
