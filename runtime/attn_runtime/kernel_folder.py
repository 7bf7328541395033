# SPDX-License-Identifier: Apache-2.0
"""A folder of compiled kernels that travels: made where nvcc is, loaded where it is not.

It holds one cubin for each kernel and device, and kernels.json, which lists them with their
digests. What it does not hold is not compiled: the error says what to export.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from attn_codegen import __version__
from attn_codegen.config import AttentionConfig
from attn_runtime.cache import Cubin, CubinCache, open_cache
from attn_runtime.compiler import Build, Unit, own_target, unit_of
from attn_runtime.errors import KernelFolderError
from attn_runtime.files import hold, replace_bytes, replace_text
from attn_runtime.source_key import bytes_digest, source_key

VARIABLE: Final = "ATTN_KERNEL_DIR"
MANIFEST: Final = "kernels.json"
LOCK: Final = ".lock"
SCHEMA: Final = 1
_SHOWN: Final = 8
_NOT_EXPORTED: Final = ("command", "log", "cubin")


@dataclass(frozen=True, slots=True)
class ExportedKernel:
    """One cubin of a folder."""

    file: str
    sha256: str
    source_key: str
    compiler: str
    tool_version: str
    build: Mapping[str, Any]
    """The fields of Build but for command, log and cubin."""

    @property
    def id(self) -> tuple[str, str]:
        """Name and target."""
        return str(self.build["name"]), str(self.build["target"])


@dataclass(frozen=True, slots=True)
class KernelFolder:
    """A folder that was exported."""

    path: Path
    kernels: Mapping[tuple[str, str], ExportedKernel]

    @classmethod
    def open(cls, path: Path) -> KernelFolder:
        """Read kernels.json. Raises KernelFolderError where there is none, or not of this kind."""
        try:
            data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(f"it is of schema {data['schema']}, this version reads {SCHEMA}")
            kernels = [ExportedKernel(**item) for item in data["kernels"]]
            return cls(path, {kernel.id: kernel for kernel in kernels})
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, KeyError, TypeError) as error:
            why = str(error)
        raise KernelFolderError(
            f"{path} is no folder of exported kernels ({MANIFEST}: {why}): make one where nvcc is, "
            f"by attn-codegen build NAME ... --export {path}"
        )

    def has(self, config: AttentionConfig, target: str) -> bool:
        """Whether it lists a kernel for a device such as sm_90."""
        return (config.name, target) in self.kernels

    def fetch(self, config: AttentionConfig, target: str) -> Cubin:
        """The cubin of a kernel. Raises KernelFolderError where it is missing, damaged, or made
        from other sources than this version's."""
        kernel = self.kernels.get((config.name, target))
        if kernel is None:
            raise self._missing(config, target)
        if kernel.source_key != source_key(unit_of(config), target):
            raise KernelFolderError(
                f"{self.path} holds {config.name} for {target} from other sources (exported by "
                f"attn-codegen {kernel.tool_version}, this is {__version__}): export it again "
                f"with this version: {_command(config, target, self.path)}"
            )
        cubin = self._read(kernel, config, target)
        build = Build(**kernel.build, command=(), log="", cubin=cubin)
        return Cubin(build, True, self.path, kernel.compiler)

    def _read(self, kernel: ExportedKernel, config: AttentionConfig, target: str) -> bytes:
        path = self.path / Path(kernel.file).name
        try:
            cubin = path.read_bytes()
            fault = "" if bytes_digest(cubin) == kernel.sha256 else f"not as {MANIFEST} says"
        except OSError as error:
            fault = error.strerror or str(error)
        if fault:
            raise KernelFolderError(
                f"{path} is damaged ({fault}): copy the folder again, or export it anew: "
                f"{_command(config, target, self.path)}"
            )
        return cubin

    def _missing(self, config: AttentionConfig, target: str) -> KernelFolderError:
        others = sorted(other for name, other in self.kernels if name == config.name)
        here = sorted(name for name, other in self.kernels if other == target)
        if others:
            holds = f"it holds this kernel for {', '.join(others)} only"
        elif here:
            more = f" and {len(here) - _SHOWN} more" if len(here) > _SHOWN else ""
            holds = f"for {target} it holds {', '.join(here[:_SHOWN])}{more}"
        else:
            targets = sorted({other for _, other in self.kernels})
            holds = f"it holds kernels for {', '.join(targets) or 'no device'}"
        return KernelFolderError(
            f"{config.name} for {target} is not in {self.path}: {holds}; export it where nvcc is: "
            f"{_command(config, target, self.path)}"
        )


def _command(config: AttentionConfig, target: str, folder: Path) -> str:
    return f"attn-codegen build {config.name} --target {target} --export {folder}"


def chosen_folder(given: Path | None) -> KernelFolder | None:
    """The folder given, else that of $ATTN_KERNEL_DIR; None where neither is."""
    named = os.environ.get(VARIABLE)
    path = given or (Path(named).expanduser() if named else None)
    return None if path is None else KernelFolder.open(path)


def cubin_of(config: AttentionConfig, target: str, given: Path | None = None) -> Cubin:
    """The cubin of a kernel: from the folder that was chosen, else from the cache, compiled where
    it must be. Raises KernelFolderError, or what CubinCache.fetch raises."""
    folder = chosen_folder(given)
    return open_cache().fetch(config, target) if folder is None else folder.fetch(config, target)


def export(
    configs: Iterable[AttentionConfig], target: str, path: Path, cache: CubinCache
) -> list[ExportedKernel]:
    """Write the cubins of configurations for a target into a folder, from the cache or compiled;
    kernels that it held before stay. kernels.json is replaced last, so that it never names a file
    that is not there, and several exports at once all end up in it. Raises OSError,
    KernelFolderError, and what CubinCache.fetch raises."""
    done = [_export_one(unit_of(config), target, path, cache) for config in dict.fromkeys(configs)]
    with hold(path / LOCK):
        listed: dict[tuple[str, str], ExportedKernel] = {}
        if (path / MANIFEST).exists():
            listed |= KernelFolder.open(path).kernels
        listed |= {kernel.id: kernel for kernel in done}
        kernels = [asdict(listed[key]) for key in sorted(listed)]
        data = {"schema": SCHEMA, "tool_version": __version__, "kernels": kernels}
        replace_text(path / MANIFEST, json.dumps(data, indent=2) + "\n")
    return done


def _export_one(unit: Unit, target: str, path: Path, cache: CubinCache) -> ExportedKernel:
    target = own_target(unit) or target
    found = cache.fetch(unit, target)
    file = f"{unit.name}.{target}.cubin"
    replace_bytes(path / file, found.build.cubin)
    names = [item.name for item in fields(Build) if item.name not in _NOT_EXPORTED]
    return ExportedKernel(
        file=file,
        sha256=bytes_digest(found.build.cubin),
        source_key=source_key(unit, target),
        compiler=found.compiler,
        tool_version=__version__,
        build={name: getattr(found.build, name) for name in names},
    )
