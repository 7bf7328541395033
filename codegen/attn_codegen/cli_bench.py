# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench`: words become types here; attn_runtime.bench measures."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, Mask
from attn_codegen.errors import SelectionError
from attn_codegen.options import json_option, preset_option, select

if TYPE_CHECKING:
    from attn_runtime.bench.shapes import Shape

_FA3_HEAD_DIMS = (64, 128, 256)


def words(axis: type[StrEnum]) -> click.Choice[str]:
    """The values of an axis."""
    return click.Choice([member.value for member in axis])


save_option = click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Also write the JSON to a file."
)
plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw a picture, such as speed.png; needs matplotlib.",
)


@click.group()
def bench() -> None:
    """Measure kernels on this machine, beside other libraries where they are installed.

    \b
    Examples:
      attn-codegen bench prefill --head-dim 128 --peers cudnn
      attn-codegen bench compile --jobs 2
      attn-codegen bench overhead
    """


@bench.command()
@click.option("--dtype", type=words(Dtype), default="bf16", show_default=True)
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
@click.option("--cache", type=words(Cache), default="linear", show_default=True)
@click.option("--block-len", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--heads", type=click.IntRange(min=1), help="[default: 2048 / head_dim]")
@click.option("--kv-heads", type=click.IntRange(min=1), help="[default: as --heads]")
@click.option("--model", metavar="NAME", help="The heads of a public model, such as llama3-8b.")
@click.option("--grid", type=click.Choice(["fa3"]), help="fa3: head dims 64, 128 and 256.")
@click.option("--arch", type=words(Arch), help="Kernel family.  [default: the fastest]")
@click.option("--lengths", metavar="S,S,...", help="Sequence lengths.  [default: 512 to 16k]")
@click.option("--tokens", type=click.IntRange(min=1), default=16_384, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), help="Sequences; in place of --tokens.")
@click.option("--varlen", is_flag=True, help="Lengths drawn at random around those of --lengths.")
@click.option("--chunk", "chunks", metavar="Q:K", multiple=True, help="Q queries over K keys.")
@click.option(
    "--shapes", metavar="FILE|SHAPE", multiple=True, help="BxHxKVxQxKxD, or a file with one a line."
)
@click.option("--peers", help="cudnn,flash,fa3,flashinfer,linear or none.  [default: those here]")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--idle", is_flag=True, help="Let the card cool down before each sample.")
@save_option
@plot_option
@json_option
def prefill(
    dtype: str,
    cache: str,
    block_len: int,
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
    each pair of a query and a key, causal squares halved.

    \b
    Examples:
      attn-codegen bench prefill --grid fa3 --peers cudnn
      attn-codegen bench prefill --model llama3-8b --cache paged --varlen --peers linear
      attn-codegen bench prefill --chunk 512:32k --heads 32 --kv-heads 8
      attn-codegen bench prefill --shapes 4x32x8x2048x2048x128 --save run.json --plot run.png
    """
    from attn_runtime.bench import peers as known
    from attn_runtime.bench import plot as picture
    from attn_runtime.bench import prefill as command
    from attn_runtime.bench.ours import Setup
    from attn_runtime.bench.timing import Schedule

    if plot is not None:
        picture.require_matplotlib()
    shapes, words = _shapes(what)
    setup = Setup(Dtype(dtype), Cache(cache), block_len, Arch(arch) if arch else None)
    schedule = Schedule.idle(rounds) if idle else Schedule(rounds=rounds)
    request = command.Request(
        shapes=tuple(shapes),
        setup=setup,
        peers=tuple(known.choose(peers)),
        schedule=schedule,
        title=command.title_of(setup, schedule, words),
    )
    results = command.run(request, click.echo if not as_json else lambda _: None)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    if save is not None:
        command.save(results, save)
    if plot is not None:
        picture.plot(results, plot)


def _shapes(what: dict[str, Any]) -> tuple[list[Shape], str]:
    """What to time, and in words."""
    from attn_runtime.bench import shapes

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


def _heads(what: dict[str, Any]) -> tuple[Any, ...]:
    from attn_runtime.bench import shapes

    model, given = what["model"], (what["head_dims"], what["heads"], what["kv_heads"])
    if model is None:
        usual = _FA3_HEAD_DIMS if what["grid"] else (128,)
        return tuple(
            shapes.heads_for(width, what["heads"], what["kv_heads"])
            for width in what["head_dims"] or usual
        )
    if any(given) or what["grid"]:
        raise SelectionError("--model fixes the heads: leave --heads, --head-dim and --grid out")
    if model not in shapes.MODELS:
        raise SelectionError(f"model {model!r} is unknown: use one of {', '.join(shapes.MODELS)}")
    return (shapes.MODELS[model],)


def _own_shapes(given: str, masks: tuple[Mask, ...]) -> list[Shape]:
    """Those of a file, or the one that is written out."""
    from attn_runtime.bench import shapes

    path = Path(given)
    if path.is_file():
        return shapes.parse_shapes(path.read_text(encoding="utf-8"), masks)
    return shapes.parse_shape(given, masks)


@bench.command("show")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--markdown", is_flag=True, help="Tables for a README.")
@plot_option
def show_results(file: Path, markdown: bool, plot: Path | None) -> None:
    """Print, or draw, the results that --save or --json has kept.

    \b
    Example:
      attn-codegen bench show run.json --plot run.png
    """
    from attn_runtime.bench import plot as picture
    from attn_runtime.bench import report

    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SelectionError(f"{file} is not JSON: {error}") from error
    results = report.Results.from_json(data)
    click.echo(report.results_text(results, markdown=markdown))
    if plot is not None:
        picture.plot(results, plot)


@bench.command("compile")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@preset_option
@click.option("--jobs", type=click.IntRange(min=1), help="Units at a time.  [default: cores]")
@click.option("--target", metavar="sm_XY", help="GPU to compile for.  [default: sm_90]")
@json_option
def compile_units(
    names: tuple[str, ...],
    preset: str | None,
    jobs: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Seconds, peak memory and size of compiling each unit, one core each; no GPU needed.

    The cache is neither read nor written. Without names, the default preset.

    \b
    Examples:
      attn-codegen bench compile prefill_sm90_bf16_d128_paged_causal
      attn-codegen bench compile --preset default --jobs 4 --target sm_90
    """
    from attn_runtime.bench import compile as command

    configs: tuple[AttentionConfig, ...] = select(preset, names, {})
    costs = command.run(configs, target or command.DEFAULT_TARGET, jobs)
    if as_json:
        click.echo(json.dumps(command.to_json(costs), indent=2))
    else:
        click.echo("\n".join(command.text(costs)))


@bench.command()
@click.option("--dtype", type=words(Dtype), default="bf16", show_default=True)
@click.option("--arch", type=words(Arch), help="Kernel family.  [default: the fastest]")
@json_option
def overhead(dtype: str, arch: str | None, as_json: bool) -> None:
    """Host microseconds of a call that was made before, beside torch's SDPA, and of invokeAttention
    in C++ where nvcc finds a host compiler.

    \b
    Example:
      attn-codegen bench overhead
    """
    from attn_runtime.bench import overhead as command

    costs = command.run(Dtype(dtype), Arch(arch) if arch else None)
    if as_json:
        click.echo(json.dumps(costs.to_json(), indent=2))
    else:
        click.echo("\n".join(command.text(costs)))
