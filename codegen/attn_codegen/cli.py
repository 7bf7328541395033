# SPDX-License-Identifier: Apache-2.0
"""The command line: each command parses, calls one function and prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from attn_codegen import __version__, presets, renderer, report, rules, space, templates, writer
from attn_codegen.cli_bench import bench
from attn_codegen.cli_build import build
from attn_codegen.cli_cache import cache
from attn_codegen.cli_doctor import doctor
from attn_codegen.cli_tune import tune
from attn_codegen.config import AttentionConfig
from attn_codegen.errors import ConfigError, SelectionError
from attn_codegen.namespace import DEFAULT_NAMESPACE
from attn_codegen.options import (
    DONE,
    FAILED,
    USAGE,
    Axes,
    ErrorGroup,
    axis_options,
    json_option,
    preset_option,
    read_tuning,
    select,
    tuning_option,
)
from attn_codegen.tiling import tiling


@click.group(cls=ErrorGroup, invoke_without_command=True)
@click.version_option(__version__, prog_name="attn-codegen")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Write attention kernels for NVIDIA GPUs as CUDA C++: no GPU and no CUDA toolkit needed.

    \b
    Example:
      attn-codegen emit --out generated
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="generated",
    show_default=True,
    help="Output folder.",
)
@preset_option
@click.option(
    "--config",
    "names",
    multiple=True,
    metavar="NAME",
    help="One kernel by name; repeat for more. With --preset, beside those of the preset.",
)
@axis_options(repeated=True)
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="C++ namespace; another one also prefixes the entry symbols.",
)
@tuning_option
@click.option(
    "--check", is_flag=True, help="Write nothing; list what differs and exit 1 if anything does."
)
@click.option("--force", is_flag=True, help="Replace files that were made or edited by hand.")
@click.option("--print-outputs", is_flag=True, help="Write nothing; print the paths, one a line.")
@json_option
@click.pass_context
def emit(
    ctx: click.Context,
    /,
    out: Path,
    preset: str | None,
    names: tuple[str, ...],
    namespace: str,
    tuning_file: Path | None,
    check: bool,
    force: bool,
    print_outputs: bool,
    as_json: bool,
    **axes: object,
) -> None:
    """Write kernels, headers and manifest.json to a folder, and the reductions that the kernels
    need.

    Axis options narrow the preset; one given twice lets both values through. Files that are already
    right are left alone, files of an earlier emit that are no longer wanted are removed, and files
    made or edited by hand are never touched without --force.

    \b
    Examples:
      attn-codegen emit
      attn-codegen emit --out build/attn --dtype bf16 --cache paged --head-dim 64 --head-dim 128
      attn-codegen emit --out build/attn --config prefill_sm80_bf16_d80_paged_causal
      attn-codegen emit --out build/attn --preset default --config prefill_sm80_f16_d80_block_causal
      attn-codegen emit --check
    """
    if check + force + print_outputs > 1:
        raise SelectionError(
            "--check, --force and --print-outputs exclude each other: use one of them"
        )
    tuning = read_tuning(tuning_file)
    configs = presets.with_reductions(select(preset, names, axes, tuning))
    texts = renderer.render(configs, namespace=namespace, tuning=tuning)
    if print_outputs:
        paths = [str(out / path) for path in texts]
        click.echo(report.as_json(paths) if as_json else "\n".join(paths))
    elif check:
        changes = writer.check(texts, out)
        if as_json:
            click.echo(report.as_json(report.drift_json(changes, out)))
        if not changes.is_current:
            _report_drift(changes, out, as_json)
            ctx.exit(FAILED)
    else:
        changes = writer.write(texts, out, force=force)
        show_as = report.changes_json(changes, out) if as_json else None
        click.echo(report.as_json(show_as) if as_json else report.changes_text(changes, out))


def _report_drift(changes: writer.Changes, out: Path, as_json: bool) -> None:
    if not as_json:
        click.echo(report.drift_text(changes, out))
    repair = (
        "attn-codegen emit --force (it drops the edits)" if changes.edited else "attn-codegen emit"
    )
    click.echo(
        f"attn-codegen: error: {out} is not what emit would write: run {repair} with the same "
        "options",
        err=True,
    )


@main.command("list")
@preset_option
@axis_options(repeated=True)
@json_option
def list_kernels(preset: str | None, as_json: bool, **axes: object) -> None:
    """List the kernels of a preset; writes nothing. --json prints the manifest's entries.

    \b
    Examples:
      attn-codegen list
      attn-codegen list --dtype bf16 --cache paged --json
    """
    configs = select(preset, (), axes)
    if as_json:
        click.echo(report.as_json([renderer.kernel_entry(config).to_json() for config in configs]))
    else:
        click.echo(report.kernels_text((config, tiling(config)) for config in configs))


@main.command()
@click.argument("name")
@click.option(
    "--device",
    "on_device",
    is_flag=True,
    help="Ask the GPU too: registers, occupancy. Needs the runtime; compiles what it has not yet.",
)
@json_option
def show(name: str, on_device: bool, as_json: bool) -> None:
    """Show one kernel: tile shape, warps, stages, shared memory, limits.

    \b
    Examples:
      attn-codegen show prefill_sm80_bf16_d128_paged_causal
      attn-codegen show prefill_sm80_bf16_d128_paged_causal --device
    """
    config = space.require_valid(AttentionConfig.parse(name))
    tile = tiling(config)
    facts = None
    if on_device:
        # A GPU and a compiler are the runtime's: everything else here works without it.
        from attn_runtime.kernel_info import kernel_info

        facts = kernel_info(config)
    if as_json:
        entry = renderer.kernel_entry(config).to_json()
        data = entry | {"limits": report.limits(config, tile)}
        click.echo(report.as_json(data | ({"device": asdict(facts)} if facts else {})))
    else:
        click.echo(report.kernel_text(config, tile))
        if facts:
            click.echo(report.device_text(facts))


@main.command("cmake-dir")
def cmake_dir() -> None:
    """Print the folder in which CMake finds find_package(attn_codegen).

    \b
    Example:
      cmake -B build -Dattn_codegen_DIR="$(attn-codegen cmake-dir)"
    """
    click.echo(templates.cmake_folder())


@main.command()
@click.argument("name", required=False)
@axis_options(repeated=False)
@json_option
@click.pass_context
def explain(ctx: click.Context, /, name: str | None, as_json: bool, **axes: object) -> None:
    """Say which rules a configuration passes and fails, and what comes nearest to one that is
    refused.

    Axes left out are those of prefill_sm80_f16_d128_block_causal. Exits 1 when the configuration is
    refused.

    \b
    Examples:
      attn-codegen explain --dtype bf16 --head-dim 100
      attn-codegen explain prefill_sm80_f16_d128_v64_block_causal
    """
    config = _explained(name, axes)
    verdicts = rules.evaluate(config)
    valid = all(verdict.passed for verdict in verdicts)
    near = () if valid else space.nearest(config)
    if as_json:
        click.echo(report.as_json(report.verdicts_json(config, verdicts, near)))
    else:
        click.echo(report.verdicts_text(config, verdicts, near))
    ctx.exit(DONE if valid else FAILED)


def _explained(name: str | None, axes: Axes) -> AttentionConfig:
    given = {axis: value for axis, value in axes.items() if value is not None}
    if name is None:
        return AttentionConfig.of(**given)
    if given:
        raise ConfigError("a name fixes every axis: give a name or axis options, not both")
    return AttentionConfig.parse(name)


main.add_command(bench)
main.add_command(tune)
main.add_command(build)
main.add_command(cache)
main.add_command(doctor)
