# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench`: the group, and its commands that take few options."""

from __future__ import annotations

import json
from pathlib import Path

import click

from attn_codegen.cli_bench_decode import decode
from attn_codegen.cli_bench_options import (
    dtype_option,
    plot_option,
    rounds_option,
    save_option,
    words,
)
from attn_codegen.cli_bench_prefill import prefill
from attn_codegen.cli_bench_write import write
from attn_codegen.config import Arch, AttentionConfig, Dtype
from attn_codegen.options import DONE, FAILED, json_option, preset_option, select


@click.group()
def bench() -> None:
    """Measure kernels on this machine, beside other libraries where they are installed.

    \b
    Examples:
      attn-codegen bench prefill --head-dim 128 --peers cudnn
      attn-codegen bench decode --model llama3-8b --batch 1,32 --context 4k
      attn-codegen bench write --kv same,int8
      attn-codegen bench compile --jobs 2
      attn-codegen bench overhead
      attn-codegen bench all --out speed
    """


bench.add_command(prefill)
bench.add_command(decode)
bench.add_command(write)


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
    from attn_runtime.bench import results as files
    from attn_runtime.bench.plot import plot as draw

    results = files.load(file)
    click.echo(files.text(results, markdown=markdown))
    if plot is not None:
        draw(results, plot)


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
      attn-codegen bench compile --jobs 2
      attn-codegen bench compile --preset turbomind --target sm_80
    """
    from attn_runtime.bench import compile as command

    configs: tuple[AttentionConfig, ...] = select(preset, names, {})
    costs = command.run(configs, target or command.DEFAULT_TARGET, jobs)
    if as_json:
        click.echo(json.dumps(command.to_json(costs), indent=2))
    else:
        click.echo("\n".join(command.text(costs)))


@bench.command()
@dtype_option
@click.option("--arch", type=words(Arch), help="Kernel family.  [default: the fastest]")
@save_option
@json_option
def overhead(dtype: str, arch: str | None, save: Path | None, as_json: bool) -> None:
    """Host microseconds of a call that was made before, beside torch's SDPA, and of invokeAttention
    in C++ where nvcc finds a host compiler.

    \b
    Example:
      attn-codegen bench overhead
    """
    from attn_runtime.bench import overhead as command
    from attn_runtime.bench import results as files

    echo = click.echo if not as_json else lambda _: None
    results = command.run(Dtype(dtype), Arch(arch) if arch else None, echo)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    if save is not None:
        files.save(results, save)


@bench.command("all")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="speed",
    show_default=True,
    help="Folder of the page, the pictures and the JSON.",
)
@click.option("--only", metavar="NAME,NAME,...", help="Some of the commands; see --list.")
@rounds_option(3)
@click.option("--list", "is_listed", is_flag=True, help="Print the commands; run nothing.")
@click.option("--no-run", is_flag=True, help="Write the page from the results that are there.")
@click.pass_context
def bench_all(
    ctx: click.Context,
    /,
    out: Path,
    only: str | None,
    rounds: int,
    is_listed: bool,
    no_run: bool,
) -> None:
    """Run every command behind the project's published figures, and write one page of tables.

    Each command has a process of its own, and its results stay in the folder as JSON. The page,
    speed.md, has the tables of all results in the folder: --only measures some of them again. A
    command that fails does not keep the others from running; the exit status is then 1.

    \b
    Examples:
      attn-codegen bench all
      attn-codegen bench all --only decode,decode-codes --rounds 7
      attn-codegen bench all --list
    """
    from attn_runtime.bench import suite

    steps = suite.choose(only)
    if is_listed:
        click.echo("\n".join(f"{step.name:20} {suite.line_of(step, rounds)}" for step in steps))
        return
    failed = [] if no_run else suite.run(steps, out, rounds, click.echo)
    suite.write_page(out, click.echo)
    for step in failed:
        click.echo(f"attn-codegen: error: {suite.line_of(step, rounds)} failed", err=True)
    ctx.exit(FAILED if failed else DONE)
