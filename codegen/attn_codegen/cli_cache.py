# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen cache`: looks at the cubin cache, and cleans it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attn_codegen import report, space
from attn_codegen.config import AttentionConfig
from attn_codegen.options import DONE, FAILED, json_option, needs_runtime
from attn_codegen.prose import counted

if TYPE_CHECKING:
    from attn_runtime.cache_entries import EntryFacts
    from attn_runtime.cache_why import Answer

    _ParamType = click.ParamType[Any]
else:  # generic for type checkers only, in some versions
    _ParamType = click.ParamType

_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class _Age(_ParamType):
    """A number and a unit, as seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"(\d+)([dhms])", str(value))
        if match is None:
            self.fail(
                f"{value!r} is no age: use a number and d, h, m or s, such as 30d", param, ctx
            )
        return int(match[1]) * _UNITS[match[2]]

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return "AGE"


def _root() -> Path:
    with needs_runtime("cache"):
        from attn_runtime.cache_folder import cache_folders
    return cache_folders().root


@click.group()
def cache() -> None:
    """Look at the cubin cache, and clean it.

    Nothing in it is ever stale: an entry is found by the bytes that were compiled, the flags and
    the compiler. Clearing it only saves disk.

    \b
    Examples:
      attn-codegen cache list
      attn-codegen cache why prefill_sm80_bf16_d128_paged_causal --target sm_90
      attn-codegen cache clear --older-than 30d
    """


@cache.command("list")
@json_option
def list_entries(as_json: bool) -> None:
    """List what the cache holds.

    \b
    Example:
      attn-codegen cache list --json
    """
    root = _root()
    from attn_runtime.cache_entries import entries

    found = entries(root)
    click.echo(report.as_json(_entries_json(found)) if as_json else _entries_text(root, found))


def _entries_json(found: Sequence[EntryFacts]) -> list[dict[str, Any]]:
    return [
        asdict(facts)
        | {"folder": str(facts.folder), "key": dict(facts.key), "source_key": facts.source_key}
        for facts in found
    ]


def _entries_text(root: Path, found: Sequence[EntryFacts]) -> str:
    header = ("name", "target", "nvcc", "made", "seconds", "registers", "peak MB", "KB", "key")
    rows = [
        (
            facts.name,
            facts.target,
            facts.compiler,
            time.strftime("%Y-%m-%d", time.localtime(facts.created)),
            f"{facts.seconds:.1f}",
            facts.registers,
            facts.peak_bytes // 10**6 or "-",
            facts.size // 10**3,
            facts.source_key[:12],
        )
        for facts in found
    ]
    size = sum(facts.size for facts in found) / 1e6
    count = counted(len(found), "entry", "entries")
    return f"{report.table(header, rows)}\n{root}: {count}, {size:.1f} MB"


@cache.command("why")
@click.argument("name")
@click.option("--target", metavar="sm_XY", help="GPU to look for.  [default: this machine's]")
@json_option
@click.pass_context
def say_why(ctx: click.Context, /, name: str, target: str | None, as_json: bool) -> None:
    """Say whether the next use of a kernel finds it in the cache, and what differs when not.

    Exits 1 when it must be compiled.

    \b
    Example:
      attn-codegen cache why prefill_sm80_bf16_d128_paged_causal
    """
    with needs_runtime("cache"):
        from attn_runtime.build import default_target
        from attn_runtime.cache import open_cache
        from attn_runtime.cache_why import why
    config = space.require_valid(AttentionConfig.parse(name))
    answer = why(config, target or default_target(), open_cache())
    click.echo(report.as_json(_answer_json(answer)) if as_json else _answer_text(answer))
    ctx.exit(DONE if answer.is_hit else FAILED)


def _answer_json(answer: Answer) -> dict[str, Any]:
    paths = {"folder": answer.folder, "nearest": answer.nearest}
    return asdict(answer) | {name: path and str(path) for name, path in paths.items()}


def _answer_text(answer: Answer) -> str:
    from attn_runtime.cache_why import shown

    word = "hit" if answer.is_hit else "miss"
    lines = [f"{word}: {answer.name} for {answer.target}: {answer.reason}"]
    if answer.folder is not None:
        lines.append(f"  {answer.folder}")
    if answer.nearest is not None:
        lines.append(f"the nearest entry, {answer.nearest}, differs in")
    for difference in answer.differences:
        was, wanted = shown(difference)
        lines.append(f"  {difference.label}: {was} there, {wanted} here")
    return "\n".join(lines)


@cache.command()
@click.option("--remove", "removes", is_flag=True, help="Remove the entries that are damaged.")
@json_option
@click.pass_context
def verify(ctx: click.Context, /, removes: bool, as_json: bool) -> None:
    """Check every entry against its digest.

    A damaged entry is never used, with or without this command: the next use compiles it anew.
    Exits 1 when damaged entries are left.

    \b
    Example:
      attn-codegen cache verify --remove
    """
    root = _root()
    from attn_runtime.cache_entries import remove, verify

    right, damages = verify(root)
    removed = remove(root, [damage.folder for damage in damages]) if removes else 0
    if as_json:
        damaged = [{"folder": str(damage.folder), "why": damage.why} for damage in damages]
        click.echo(report.as_json({"right": right, "damaged": damaged, "removed": removed}))
    else:
        for damage in damages:
            click.echo(f"damaged  {damage.folder}: {damage.why}")
        end = "remove them with attn-codegen cache verify --remove" if damages else ""
        end = f"{removed} removed" if removed else end
        said = f"{root}: {right} right, {len(damages)} damaged"
        click.echo(f"{said}; {end}" if end else said)
    ctx.exit(DONE if removed == len(damages) else FAILED)


@cache.command()
@click.option(
    "--older-than", type=_Age(), help="Only what was made longer ago, such as 30d or 12h."
)
@json_option
def clear(older_than: int | None, as_json: bool) -> None:
    """Remove entries, and what killed compiles left behind.

    \b
    Examples:
      attn-codegen cache clear
      attn-codegen cache clear --older-than 30d
    """
    root = _root()
    from attn_runtime.cache_entries import clear

    count, size = clear(root, older_than)
    if as_json:
        click.echo(report.as_json({"folder": str(root), "removed": count, "bytes": size}))
    else:
        click.echo(f"{root}: {counted(count, 'entry', 'entries')} removed, {size / 1e6:.1f} MB")
