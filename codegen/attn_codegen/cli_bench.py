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
    words,
)
from attn_codegen.cli_bench_prefill import prefill
from attn_codegen.cli_bench_write import write
from attn_codegen.config import Arch, AttentionConfig, Dtype
from attn_codegen.options import json_option, preset_option, select


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
@json_option
def overhead(dtype: str, arch: str | None, as_json: bool) -> None:
    """Host microseconds of a call that was made before, beside torch's SDPA, and of invokeAttention
    in C++ where nvcc finds a host compiler.

    \b
    Example:
      attn-codegen bench overhead
    """
    from attn_runtime.bench import overhead as command

    echo = click.echo if not as_json else lambda _: None
    costs = command.run(Dtype(dtype), Arch(arch) if arch else None, echo)
    if as_json:
        click.echo(json.dumps(costs.to_json(), indent=2))
