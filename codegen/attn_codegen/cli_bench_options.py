# SPDX-License-Identifier: Apache-2.0
"""Options that several `bench` commands have."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import click

from attn_codegen.config import Cache, Dtype, KvDtype, axis_value
from attn_codegen.errors import SelectionError


def words(axis: type[StrEnum]) -> click.Choice[str]:
    """The values of an axis."""
    return click.Choice([member.value for member in axis])


def output_file(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """A file that is written when all is measured; where it cannot be, that is said before."""
    from attn_runtime.files import require_writable

    if path is not None:
        require_writable(path.parent, option.opts[0])
    return path


save_option = click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=output_file,
    help="Also write the JSON to a file.",
)
plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=output_file,
    help="Also draw a picture, such as speed.png; needs matplotlib.",
)


def cache_option(usual: Cache) -> Callable[[Any], Any]:
    """--cache, with what is taken when it is left out."""
    return click.option(
        "--cache",
        type=words(Cache),
        default=usual.value,
        show_default=True,
        help="How keys and values lie in memory.",
    )


def kinds_of_codes(_: click.Context, __: click.Parameter, text: str) -> tuple[KvDtype, ...]:
    """The types of a list with commas, each once."""
    chosen = (axis_value(KvDtype, "kv_dtype", word.strip()) for word in text.split(","))
    return tuple(dict.fromkeys(chosen))


def kv_option(usual: str) -> Callable[[Any], Any]:
    """--kv, with what is taken when it is left out."""
    return click.option(
        "--kv",
        "kv_dtypes",
        metavar="TYPE,TYPE,...",
        default=usual,
        callback=kinds_of_codes,
        show_default=True,
        help="Elements of the cache: same, int8, int4, e4m3.",
    )


dtype_option = click.option(
    "--dtype",
    type=words(Dtype),
    default="bf16",
    show_default=True,
    help="Elements of q, and of a cache that is not quantised.",
)
block_len_option = click.option(
    "--block-len",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens of a block.",
)
tokens_option = click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16_384,
    show_default=True,
    help="Tokens of a batch.",
)


def rounds_option(usual: int = 7) -> Callable[[Any], Any]:
    """--rounds, with what is taken when it is left out."""
    return click.option(
        "--rounds",
        type=click.IntRange(min=1),
        default=usual,
        show_default=True,
        help="Shuffled rounds, whose medians count.",
    )


peers_help = "%s or none, with commas.  [default: those installed]"


def model_heads(model: str, given: tuple[Any, ...]) -> Any:
    """The Heads of a public model; the options that it stands for must be left out."""
    from attn_runtime.bench.shapes import MODELS

    if any(given):
        raise SelectionError("--model fixes the heads: leave --heads, --head-dim and --grid out")
    if model not in MODELS:
        raise SelectionError(f"model {model!r} is unknown: use one of {', '.join(MODELS)}")
    return MODELS[model]
