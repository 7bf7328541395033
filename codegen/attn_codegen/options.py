# SPDX-License-Identifier: Apache-2.0
"""The command line's edge: words become types here, and errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from attn_codegen import presets, rules, space, tuning
from attn_codegen.config import AXES, AXIS_NAMES, AttentionConfig, axis_value
from attn_codegen.errors import CodegenError, ConfigError, SelectionError
from attn_codegen.tuning import Tuning

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic for type checkers only, in some versions
    _ParamType = click.ParamType

Axes = dict[str, Any]
_Command = TypeVar("_Command", bound=Callable[..., Any])

_HELP: Final = {
    "mode": "What the kernel does.",
    "arch": "Kernel family: sm80 for any GPU from 8.0 on, sm90 for Hopper; sm70 and sm75 are "
    "reserved, no kernels exist of them.",
    "dtype": "Element type of q and of the output.",
    "kv_dtype": "Element type of the KV cache.",
    "head_dim": "Width of a row of q and K.",
    "head_dim_v": "Width of a row of V and of the output.",
    "cache": "How keys and values lie in memory.",
    "mask": "Which keys a query sees.",
    "tile": "Tile word, or 'default'.",
}


class _Words(_ParamType):
    """An axis of words."""

    def __init__(self, axis: str, values: type[StrEnum]) -> None:
        self.name = axis
        self._values = values

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StrEnum:
        return axis_value(self._values, self.name, value)

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return f"[{'|'.join(self._values)}]"


class _HeadDim(_ParamType):
    """A whole number; which ones exist is for the rules to say."""

    def __init__(self, axis: str) -> None:
        self.name = axis

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value)
        except ValueError:
            raise ConfigError(
                f"{self.name} {value!r} is not a whole number: {rules.HEAD_DIM_HINT}"
            ) from None

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return "INTEGER"


class _Tile(_ParamType):
    """A tile word; `default` is the command line's word for the empty one."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        tile = "" if value == "default" else str(value)
        return AttentionConfig(tile=tile).tile

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return "WORD"


def _type_of(axis: str) -> _ParamType:
    if axis in AXES:
        return _Words(axis, AXES[axis])
    return _Tile() if axis == "tile" else _HeadDim(axis)


def axis_options(*, repeated: bool) -> Callable[[_Command], _Command]:
    """One option per axis; of a `repeated` one given several times, any value will do."""

    def decorate(command: _Command) -> _Command:
        for axis in reversed(AXIS_NAMES):
            flag = f"--{axis.replace('_', '-')}"
            option = click.option(
                flag, axis, type=_type_of(axis), multiple=repeated, help=_HELP[axis]
            )
            command = option(command)
        return command

    return decorate


preset_option = click.option(
    "--preset",
    metavar=f"[{'|'.join(presets.PRESETS)}]",
    help="Which list of kernels to start from.  [default: default]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


tuning_option = click.option(
    "--tuning",
    "tuning_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What tiles cost: a file of `attn-codegen tune`.  [default: as measured on an H200]",
)


def read_tuning(path: Path | None) -> Tuning:
    """The tuning of a file, or the one that comes with the package. Raises TuningError."""
    return tuning.shipped() if path is None else tuning.read(path)


def select(
    preset: str | None, names: Iterable[str], axes: Axes, tuned: Tuning | None = None
) -> tuple[AttentionConfig, ...]:
    """The configurations of a preset that have one of the given values on each axis, and those
    named; all valid. The preset is the default one unless kernels are named, and then none.
    `tuned` says which tiles are in the default preset.

    Raises ConfigError for a name that no kernel has, SelectionError when nothing is left or when
    axes have no preset to narrow.
    """
    named = [space.require_valid(AttentionConfig.parse(name)) for name in names]
    given = {axis: axes[axis] for axis in AXIS_NAMES if axes.get(axis)}
    if named and given and not preset:
        raise SelectionError(
            "a name, or --config, is one kernel, and the axis options narrow a preset: give "
            "--preset as well, such as --preset default, to have both"
        )
    if named and not preset:
        return tuple(named)
    preset = preset or "default"
    found = [config for config in presets.preset(preset, tuned) if _matches(config, given)]
    if not found:
        raise SelectionError(_nothing_matches(preset, given))
    return tuple(dict.fromkeys([*found, *named]))


def _matches(config: AttentionConfig, given: Axes) -> bool:
    return all(getattr(config, axis) in values for axis, values in given.items())


def _nothing_matches(preset: str, given: Axes) -> str:
    wanted = ", ".join(f"{axis} {' or '.join(map(str, values))}" for axis, values in given.items())
    config = AttentionConfig.of(**{axis: values[0] for axis, values in given.items()})
    wrong = rules.faults(config)
    if wrong:
        return f"no kernel of preset {preset} has {wanted}: {'; '.join(wrong)}"
    return (
        f"no kernel of preset {preset} has {wanted}: to choose kernels outside the preset name "
        f"them, such as --config {config.name}"
    )


@contextmanager
def needs_runtime(command: str) -> Iterator[None]:
    """Around the import of attn_runtime in a command that needs it; the others work without."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CodegenError(f"{command} needs {error.name}: install attn-codegen with pip") from None


class ErrorGroup(click.Group):
    """A command group whose errors are one line on stderr and an exit code, never a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(USAGE)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "attn-codegen"
            _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", USAGE)
        except click.ClickException as error:
            _fail(error.format_message(), FAILED)
        except (ConfigError, SelectionError) as error:
            _fail(str(error), USAGE)
        except CodegenError as error:
            _fail(str(error), FAILED)
        except (KeyboardInterrupt, click.Abort):
            _fail(
                "interrupted; every file is whole, and the next run finishes the work", INTERRUPTED
            )
        except OSError as error:
            if error.filename is None:
                _quiet_stdout()
            what = f"use {error.filename}" if error.filename else "print"
            _fail(f"cannot {what}: {error.strerror or error}", FAILED)
        sys.exit(code if isinstance(code, int) else DONE)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"attn-codegen: error: {message}", err=True)
    sys.exit(code)


def _quiet_stdout() -> None:
    """Keep the interpreter from flushing into a closed pipe or a full device again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
