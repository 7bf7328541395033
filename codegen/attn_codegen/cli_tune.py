# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen tune`: words become types here; attn_runtime.tune measures."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from attn_codegen.cli_bench_options import output_file, rounds_option
from attn_codegen.options import (
    Axes,
    axis_options,
    preset_option,
    read_tuning,
    select,
    tuning_option,
)
from attn_codegen.prose import counted


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@preset_option
@axis_options(repeated=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=output_file,
    default="tuning.json",
    show_default=True,
    help="The file to write.",
)
@tuning_option
@rounds_option(5)
def tune(
    names: tuple[str, ...],
    preset: str | None,
    out: Path,
    tuning_file: Path | None,
    rounds: int,
    **axes: object,
) -> None:
    """Time the tiles of configurations on this GPU, and write what they cost to a file.

    `emit --tuning FILE`, and Attention(tuning=...) in Python, choose tiles and splits by such a
    file. What is not timed keeps the costs that --tuning, or the package, has.

    \b
    Examples:
      attn-codegen tune prefill_sm90_bf16_d128_paged_causal
      attn-codegen tune --arch sm90 --dtype bf16 --cache linear --cache paged --out mine.json
    """
    from attn_runtime import tune as command
    from attn_runtime.bench.timing import Schedule
    from attn_runtime.files import replace_text

    base = read_tuning(tuning_file)
    request = command.Request(
        configs=select(preset, names, axes, base),
        base=base,
        command=command_line(names, preset, axes, rounds),
        schedule=Schedule(rounds=rounds, round_ms=4.0, warm_ms=20.0),
    )
    found = command.run(request, click.echo)
    replace_text(out, found.to_text())
    click.echo(f"{out}: {counted(len(found.costs), 'configuration')}")


def command_line(names: tuple[str, ...], preset: str | None, axes: Axes, rounds: int) -> str:
    """The command without the paths of this machine."""
    words = ["attn-codegen", "tune", *names]
    if preset:
        words += ["--preset", preset]
    for axis, values in sorted(axes.items()):
        for value in values:
            words += [f"--{axis.replace('_', '-')}", str(value) or "default"]
    return shlex.join([*words, "--rounds", str(rounds)])
