# SPDX-License-Identifier: Apache-2.0
"""One attention kernel as data: the axes of a configuration and its canonical name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from numbers import Integral
from typing import Any, Final, TypeVar

from attn_codegen.errors import ConfigError
from attn_codegen.prose import join_words

EXAMPLE_NAME: Final = "prefill_sm80_f16_d128_block_causal"


class Mode(StrEnum):
    """What the kernel does."""

    PREFILL = "prefill"
    DECODE = "decode"
    WRITE = "write"
    REDUCE = "reduce"


class Arch(StrEnum):
    """The kernel family (not the device: sm80 kernels serve every later GPU too).

    The words for Volta and Turing are reserved: rules.py refuses them, with the reason.
    """

    SM70 = "sm70"
    SM75 = "sm75"
    SM80 = "sm80"
    SM90 = "sm90"


class Dtype(StrEnum):
    """The element type of q and of the output."""

    F16 = "f16"
    BF16 = "bf16"


class KvDtype(StrEnum):
    """The element type of the KV cache; SAME means that of q."""

    SAME = "same"
    INT8 = "int8"
    INT4 = "int4"
    E4M3 = "e4m3"

    @property
    def has_pairs(self) -> bool:
        """Whether each row of a cache has a (scale, zero) pair."""
        return self in (KvDtype.INT8, KvDtype.INT4)


class Cache(StrEnum):
    """How keys and values lie in memory."""

    LINEAR = "linear"
    BLOCK = "block"
    PAGED = "paged"


class Mask(StrEnum):
    """Which keys a query sees."""

    CAUSAL = "causal"
    FULL = "full"


AXES: Final[dict[str, type[StrEnum]]] = {
    "mode": Mode,
    "arch": Arch,
    "dtype": Dtype,
    "kv_dtype": KvDtype,
    "cache": Cache,
    "mask": Mask,
}
"""The axes whose values are words; the others are head_dim, head_dim_v and tile."""

AXIS_NAMES: Final = (
    "mode",
    "arch",
    "dtype",
    "kv_dtype",
    "head_dim",
    "head_dim_v",
    "cache",
    "mask",
    "tile",
)

_TILE = re.compile(r"t[0-9][0-9a-z]*")
_INTEGER = r"(?:0|-?[1-9][0-9]*)"
_HEAD_DIM = re.compile(rf"d({_INTEGER})")
_HEAD_DIM_V = re.compile(rf"v({_INTEGER})")

_Word = TypeVar("_Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """One kernel. Any combination can be written down; `rules.evaluate` says which ones exist.

    `head_dim_v` left out (or None) is `head_dim`. `cache` and `mask` are None where the mode has
    none. `tile` is the tile word of `tiling.tilings`; the empty string is the default tile.
    """

    mode: Mode = Mode.PREFILL
    arch: Arch = Arch.SM80
    dtype: Dtype = Dtype.F16
    kv_dtype: KvDtype = KvDtype.SAME
    head_dim: int = 128
    head_dim_v: int = None  # type: ignore[assignment]  # an int once __post_init__ has run
    cache: Cache | None = Cache.BLOCK
    mask: Mask | None = Mask.CAUSAL
    tile: str = ""

    def __post_init__(self) -> None:
        if self.head_dim_v is None:
            object.__setattr__(self, "head_dim_v", self.head_dim)
        if self.tile and not _TILE.fullmatch(self.tile):
            raise ConfigError(
                f"tile {self.tile!r} is not a tile word: use letters and digits after 't' and a "
                "digit, such as t128x64, or leave it empty for the default tile"
            )

    @property
    def name(self) -> str:
        """The canonical name: file stem, entry symbol and manifest key."""
        words = [self.mode.value, self.arch.value, self.dtype.value]
        if self.kv_dtype is not KvDtype.SAME:
            words.append(self.kv_dtype.value)
        words.append(f"d{self.head_dim}")
        if self.head_dim_v != self.head_dim:
            words.append(f"v{self.head_dim_v}")
        if self.cache is not None:
            words.append(self.cache.value)
        if self.mask is not None:
            words.append(self.mask.value)
        if self.tile:
            words.append(self.tile)
        return "_".join(words)

    @classmethod
    def parse(cls, name: str) -> AttentionConfig:
        """The configuration of a canonical name; `parse(c.name) == c` for every configuration.

        Raises ConfigError for a name that is not canonical, saying which word is wrong and what may
        stand there.
        """
        words = _Words(name)
        axes: dict[str, Any] = {
            "mode": words.need(Mode, "mode"),
            "arch": words.need(Arch, "arch"),
            "dtype": words.need(Dtype, "dtype"),
            "kv_dtype": words.take(KvDtype) or KvDtype.SAME,
            "head_dim": words.need_head_dim(),
            "head_dim_v": words.take_head_dim_v(),
            "cache": words.take(Cache),
            "mask": words.take(Mask),
            "tile": words.take_tile(),
        }
        words.end()
        config = cls(**axes)
        if config.name != name:
            raise ConfigError(f"configuration name {name!r} is not canonical: use {config.name!r}")
        return config

    @classmethod
    def of(cls, **axes: Any) -> AttentionConfig:
        """A configuration from axes given as words or as enum members; None and missing axes take
        the mode's defaults.

        Raises ConfigError for an unknown axis or value.
        """
        unknown = sorted(set(axes) - set(AXIS_NAMES))
        if unknown:
            raise ConfigError(f"unknown axis {unknown[0]!r}: use {join_words(AXIS_NAMES)}")
        given = {axis: value for axis, value in axes.items() if value is not None}
        for axis, values in AXES.items():
            if axis in given:
                given[axis] = axis_value(values, axis, given[axis])
        for axis in ("head_dim", "head_dim_v"):
            if axis in given:
                given[axis] = _integer(axis, given[axis])
        if given.get("mode") is Mode.REDUCE:
            given = {"cache": None, "mask": None} | given
        if given.get("mode") is Mode.WRITE:
            given = {"mask": None} | given
        return cls(**given)

    def axes(self) -> dict[str, str | int | None]:
        """Every axis in the words of the command line; None where the mode has no such axis."""
        return {
            "mode": self.mode.value,
            "arch": self.arch.value,
            "dtype": self.dtype.value,
            "kv_dtype": self.kv_dtype.value,
            "head_dim": self.head_dim,
            "head_dim_v": self.head_dim_v,
            "cache": None if self.cache is None else self.cache.value,
            "mask": None if self.mask is None else self.mask.value,
            "tile": self.tile,
        }


def reduction_of(config: AttentionConfig) -> AttentionConfig:
    """The kernel that merges the splits of an attention kernel, whatever its family and cache."""
    return AttentionConfig(
        mode=Mode.REDUCE,
        arch=Arch.SM80,
        dtype=config.dtype,
        head_dim=config.head_dim_v,
        cache=None,
        mask=None,
    )


def axis_value(values: type[_Word], axis: str, word: Any) -> _Word:
    """The member of an axis that `word` names, or a ConfigError that lists what is allowed."""
    try:
        return values(word)
    except ValueError:
        shown = str(word) if isinstance(word, str) else word
        raise ConfigError(f"unknown {axis} {shown!r}: use {_allowed(values)}") from None


def _allowed(values: type[StrEnum]) -> str:
    """The words of an axis for which there are kernels."""
    if values is Arch:
        return f"{Arch.SM80} (any GPU from compute capability 8.0 on) or {Arch.SM90} (Hopper)"
    return join_words(values)


def _integer(axis: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{axis} {value!r} is not a whole number: use one such as 128")
    return int(value)


def _nearest_word(word: str) -> str:
    """What may have been meant by a word that no axis has."""
    known = [value.value for axis in (Mode, Arch, Dtype, KvDtype, Cache, Mask) for value in axis]
    close = [] if word in known else get_close_matches(word, known, n=1)
    return f" (nearest: {close[0]})" if close else ""


class _Words:
    """The words of a name, read from the left; each axis takes the word that is its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._words = name.split("_")
        self._next = 0

    def take(self, values: type[_Word]) -> _Word | None:
        try:
            value = values(self._peek())
        except ValueError:
            return None
        self._next += 1
        return value

    def need(self, values: type[_Word], axis: str) -> _Word:
        word = self.take(values)
        if word is None:
            raise self._error(axis, _allowed(values))
        return word

    def need_head_dim(self) -> int:
        number = self._take_match(_HEAD_DIM)
        if number is None:
            raise self._error("head_dim", "d and a number, such as d128")
        return int(number)

    def take_head_dim_v(self) -> int | None:
        number = self._take_match(_HEAD_DIM_V)
        return None if number is None else int(number)

    def take_tile(self) -> str:
        return self._take_match(_TILE) or ""

    def end(self) -> None:
        if self._next < len(self._words):
            raise ConfigError(
                f"configuration name {self._name!r} has {self._peek()!r} out of place"
                f"{_nearest_word(self._peek())}: the words are mode, arch, dtype, kv_dtype unless "
                "same, d + head_dim, v + head_dim_v unless equal, cache, mask, tile, in this order "
                f"(example: {EXAMPLE_NAME})"
            )

    def _peek(self) -> str:
        return self._words[self._next] if self._next < len(self._words) else ""

    def _take_match(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.fullmatch(self._peek())
        if match is None:
            return None
        self._next += 1
        return match[match.lastindex or 0]

    def _error(self, axis: str, allowed: str) -> ConfigError:
        got = repr(self._peek()) if self._next < len(self._words) else "nothing"
        return ConfigError(
            f"configuration name {self._name!r} has {got} where {axis} stands: use {allowed} "
            f"(example: {EXAMPLE_NAME})"
        )
