# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench prefill`: words become types here; attn_runtime.bench measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attn_codegen.cli_bench_options import (
    block_len_option,
    cache_option,
    dtype_option,
    kv_option,
    model_heads,
    peers_help,
    plot_option,
    rounds_option,
    save_option,
    tokens_option,
    words,
)
from attn_codegen.config import Arch, Cache, Dtype, KvDtype, Mask
from attn_codegen.errors import SelectionError
from attn_codegen.options import json_option
from attn_codegen.prose import join_words

if TYPE_CHECKING:
    from attn_runtime.bench.shapes import Shape

_FA3_HEAD_DIMS = (64, 128, 256)
_LEAVES_UNUSED = {
    "shapes": (
        *("chunks", "lengths", "batch", "varlen"),
        *("head_dims", "heads", "kv_heads", "model", "grid"),
    ),
    "chunks": ("lengths", "batch", "varlen"),
    "batch": ("varlen",),
    "grid": ("head_dims",),
}


@click.command()
@dtype_option
@click.option(
    "--head-dim", "head_dims", type=int, multiple=True, help="Repeat for more.  [default: 128]"
)
@click.option(
    "--mask",
    "masks",
    type=words(Mask),
    multiple=True,
    help="Repeat for more.  [default: both]",
)
@cache_option(Cache.LINEAR)
@block_len_option
@click.option(
    "--layout", type=click.Choice(["nhd", "hnd"]), help="How paged pools lie.  [default: nhd]"
)
@kv_option("same")
@click.option(
    "--heads", type=click.IntRange(min=1), help="Query heads.  [default: 2048 / head_dim]"
)
@click.option("--kv-heads", type=click.IntRange(min=1), help="KV heads.  [default: as --heads]")
@click.option("--model", metavar="NAME", help="The heads of a public model, such as llama3-8b.")
@click.option("--grid", type=click.Choice(["fa3"]), help="fa3: head dims 64, 128 and 256.")
@click.option("--arch", type=words(Arch), help="Kernel family.  [default: the fastest]")
@click.option("--lengths", metavar="S,S,...", help="Sequence lengths.  [default: 512 to 16k]")
@tokens_option
@click.option("--batch", type=click.IntRange(min=1), help="Sequences; in place of --tokens.")
@click.option("--varlen", is_flag=True, help="Lengths drawn at random around those of --lengths.")
@click.option("--chunk", "chunks", metavar="Q:K", multiple=True, help="Q queries over K keys.")
@click.option(
    "--shapes", metavar="FILE|SHAPE", multiple=True, help="BxHxKVxQxKxD, or a file with one a line."
)
@click.option("--peers", help=peers_help % "cudnn,flash,fa3,flashinfer,linear")
@rounds_option()
@click.option("--idle", is_flag=True, help="Let the card cool down before each sample.")
@save_option
@plot_option
@json_option
def prefill(
    dtype: str,
    cache: str,
    block_len: int,
    layout: str | None,
    kv_dtypes: tuple[KvDtype, ...],
    arch: str | None,
    peers: str | None,
    rounds: int,
    idle: bool,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
    **what: Any,
) -> None:
    """TFLOP/s of prefill by sequence length, and how many times that of each peer.

    Every shape is checked against float64 first. All contenders run in this process, in shuffled
    rounds back to back between CUDA events; the medians count. Work is 4 x head_dim operations for
    each pair of a query and a key, causal squares halved. Quantised caches (--kv) are compared with
    ours on the cache of the same layout that is not.

    \b
    Examples:
      attn-codegen bench prefill --grid fa3 --peers cudnn
      attn-codegen bench prefill --model llama3-8b --cache paged --varlen --peers linear
      attn-codegen bench prefill --chunk 512:32k --heads 32 --kv-heads 8
      attn-codegen bench prefill --kv same,int8,int4,e4m3 --cache paged --layout hnd --peers none
      attn-codegen bench prefill --shapes 4x32x8x2048x2048x128 --save run.json --plot run.png
    """
    from attn_runtime.bench import peers as known
    from attn_runtime.bench import plot as picture
    from attn_runtime.bench import prefill as command
    from attn_runtime.bench import results as files
    from attn_runtime.bench.key_stores import Layout, Setup
    from attn_runtime.bench.timing import Schedule

    if plot is not None:
        picture.require_matplotlib(plot)
    if layout and cache != Cache.PAGED:
        raise SelectionError(
            f"--layout is how the pools of a paged cache lie: use it with --cache paged, or leave "
            f"it out for a {cache} cache"
        )
    shapes, words = _shapes(what)
    setup = Setup(
        Dtype(dtype),
        Cache(cache),
        block_len,
        Arch(arch) if arch else None,
        layout=Layout(layout or Layout.NHD),
    )
    schedule = Schedule.idle(rounds) if idle else Schedule(rounds=rounds)
    request = command.Request(
        shapes=tuple(shapes),
        setup=setup,
        peers=tuple(known.choose(peers)),
        schedule=schedule,
        title=command.title_of(setup, schedule, words, kv_dtypes),
        kv_dtypes=kv_dtypes,
    )
    results = command.run(request, click.echo if not as_json else lambda _: None)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    if save is not None:
        files.save(results, save)
    if plot is not None:
        picture.plot(results, plot)


def _shapes(what: dict[str, Any]) -> tuple[list[Shape], str]:
    """What to time, and in words."""
    from attn_runtime.bench import shapes

    _refuse_mixtures(what)
    masks = tuple(Mask(mask) for mask in what["masks"]) or (Mask.FULL, Mask.CAUSAL)
    if what["shapes"]:
        return [
            shape for given in what["shapes"] for shape in _own_shapes(given, masks)
        ], "BATCHxHEADSxKV_HEADSxQUERIESxKEYSxHEAD_DIM"
    heads = _heads(what)
    if what["chunks"]:
        pairs = [shapes.parse_chunk(text) for text in what["chunks"]]
        found = [one for q, k in pairs for one in shapes.chunk(q, k, heads, masks)]
        return found, "head_dim and mask by queries:keys of one sequence"
    lengths = what["lengths"]
    grid = shapes.Grid(
        heads,
        masks,
        tuple(map(shapes.parse_length, lengths.split(","))) if lengths else shapes.LENGTHS,
        what["tokens"],
        what["batch"],
        what["varlen"],
    )
    size = f"batch {grid.batch}" if grid.batch else f"{grid.tokens} tokens"
    by = "mean of random lengths" if grid.is_ragged else "sequence length"
    return grid.shapes(), f"{size}, head_dim and mask by {by}"


def _refuse_mixtures(what: dict[str, Any]) -> None:
    """Refuse options that another one would leave unused. Raises SelectionError."""
    for choice, unused in _LEAVES_UNUSED.items():
        given = [_flag(name) for name in unused if what[name]]
        if what[choice] and given:
            raise SelectionError(
                f"{_flag(choice)} leaves nothing for {join_words(given, 'and')} to choose: "
                "use one or the other"
            )


def _flag(name: str) -> str:
    """Of an option, by the name of its value."""
    return {"chunks": "--chunk", "head_dims": "--head-dim"}.get(name, f"--{name.replace('_', '-')}")


def _heads(what: dict[str, Any]) -> tuple[Any, ...]:
    from attn_runtime.bench import shapes

    given = (what["head_dims"], what["heads"], what["kv_heads"], what["grid"])
    if what["model"] is not None:
        return (model_heads(what["model"], given),)
    usual = _FA3_HEAD_DIMS if what["grid"] else (128,)
    return tuple(
        shapes.heads_for(width, what["heads"], what["kv_heads"])
        for width in what["head_dims"] or usual
    )


def _own_shapes(given: str, masks: tuple[Mask, ...]) -> list[Shape]:
    """Those of a file, or the one that is written out."""
    from attn_runtime.bench import shapes

    path = Path(given)
    if path.is_file():
        return shapes.parse_shapes(path.read_text(encoding="utf-8"), masks)
    return shapes.parse_shape(given, masks)
