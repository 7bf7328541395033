# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen build`: the command that compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from attn_codegen import presets, report
from attn_codegen.config import AttentionConfig
from attn_codegen.options import DONE, FAILED, json_option, needs_runtime, select
from attn_codegen.prose import counted


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Most compilers at a time; memory may allow fewer.  [default: cores]",
)
@click.option("--target", metavar="sm_XY", help="GPU to compile for.  [default: this machine's]")
@click.option(
    "--export",
    "export_to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write the cubins, and the reductions they need, to a folder that travels.",
)
@json_option
@click.pass_context
def build(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    jobs: int | None,
    target: str | None,
    export_to: Path | None,
    as_json: bool,
) -> None:
    """Compile kernels into the cubin cache, ahead of their first use; without names, those of the
    default preset that the target runs. Needs nvcc for what the cache does not hold.

    An exported folder is loaded on machines without nvcc: Attention(..., kernels=FOLDER), or
    ATTN_KERNEL_DIR=FOLDER. Several exports, for several GPUs say, may share one folder.

    \b
    Examples:
      attn-codegen build prefill_sm80_bf16_d128_paged_causal reduce_sm80_bf16_d128
      attn-codegen build --jobs 8 --target sm_90
      attn-codegen build prefill_sm80_bf16_d128_paged_causal --target sm_86 --export kernels
    """
    configs = select(None, names, {})
    if export_to is not None:
        configs = tuple(presets.with_reductions(configs))
    with needs_runtime("build"):
        from attn_runtime.build import build as build_all
        from attn_runtime.build import default_target
        from attn_runtime.files import require_writable
    if target is not None and not names:
        configs = _served(configs, target)
    if export_to is not None:
        require_writable(export_to, "--export")
        target = target or default_target()
    with _progress(len(configs)) as on_done:
        reports = build_all(configs, jobs, target, on_done)
    shown = report.builds_json(reports) if as_json else report.builds_text(reports)
    click.echo(report.as_json(shown) if as_json else shown)
    failures = [str(done.error) for done in reports if done.error]
    for failure in failures:
        click.echo(f"attn-codegen: error: {failure}", err=True)
    if export_to is not None and target is not None and not failures:
        _export(configs, target, export_to)
    ctx.exit(FAILED if failures else DONE)


def _served(configs: tuple[AttentionConfig, ...], target: str) -> tuple[AttentionConfig, ...]:
    """Those that the target runs; how many are left out is said."""
    from attn_runtime.compiler import own_target, unit_of

    served = tuple(c for c in configs if own_target(unit_of(c)) in (None, target))
    if left_out := len(configs) - len(served):
        said = f"{counted(left_out, 'kernel')} left out: written for another GPU than {target}"
        click.echo(said, err=True)
    return served


def _export(configs: Any, target: str, folder: Path) -> None:
    from attn_runtime.cache import open_cache
    from attn_runtime.kernel_folder import export

    done = export(configs, target, folder, open_cache())
    click.echo(f"{folder}: {counted(len(done), 'kernel')} exported", err=True)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal; elsewhere a line per kernel that was compiled, on stderr."""
    if sys.stderr.isatty():
        with click.progressbar(length=count, label="compiling", file=sys.stderr) as bar:
            yield lambda _: bar.update(1)
        return
    done = 0

    def tell(built: Any) -> None:
        nonlocal done
        done += 1
        if not built.is_hit and built.error is None:
            click.echo(f"[{done}/{count}] {built.name} {built.seconds:.1f} s", err=True)

    yield tell
