# SPDX-License-Identifier: Apache-2.0
"""Configurations in, {path: text} out: the one Jinja environment, pure and memoised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateNotFound

from attn_codegen import __version__, params
from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, Mask, Mode, reduction_of
from attn_codegen.errors import RenderError
from attn_codegen.manifest import FILE_NAME, KernelEntry, Manifest, TileEntry, sha256
from attn_codegen.namespace import DEFAULT_NAMESPACE, checked, moved, symbol_of
from attn_codegen.tiling import Tiling, tiling

PARAMS_PATH: Final = "attn/params.h"

_CPP_DTYPE: Final = {Dtype.F16: "half", Dtype.BF16: "__nv_bfloat16"}
_CPP_ARCH: Final = {
    Arch.SM70: "arch::Sm70",
    Arch.SM75: "arch::Sm75",
    Arch.SM80: "arch::Sm80",
    Arch.SM90: "arch::Sm90",
}
_CPP_CACHE: Final = {
    Cache.LINEAR: "CacheType::kLinear",
    Cache.BLOCK: "CacheType::kBlock",
    Cache.PAGED: "CacheType::kPaged",
}
_CPP_MASK: Final = {Mask.CAUSAL: "Mask::kCausal", Mask.FULL: "Mask::kFull"}
_CAPABILITY: Final = {Arch.SM70: "70", Arch.SM75: "75", Arch.SM80: "80", Arch.SM90: "90a"}

_HEADER_SUFFIXES: Final = (".h", ".cuh")


def render(
    configs: Iterable[AttentionConfig], *, namespace: str = DEFAULT_NAMESPACE
) -> dict[str, str]:
    """Every file of a generated folder, sorted by path: headers, units and the manifest.

    The order of the configurations and repeats do not matter. Raises ConfigError for a namespace
    that C++ cannot take, RenderError when the templates do not fit.
    """
    texts = dict(headers(namespace))
    entries = []
    for config in sorted(set(configs), key=lambda config: config.name):
        entry, text = _unit(config, namespace)
        entries.append(entry)
        texts[entry.file] = text
    manifest = Manifest(
        tool_version=__version__,
        namespace=namespace,
        kernels=tuple(entries),
        files={path: sha256(text) for path, text in texts.items()},
    )
    texts[FILE_NAME] = manifest.to_text()
    return dict(sorted(texts.items()))


def unit_sources(config: AttentionConfig, *, namespace: str = DEFAULT_NAMESPACE) -> dict[str, str]:
    """{path: text} of what one kernel is compiled from: its unit and all headers."""
    entry, text = _unit(config, namespace)
    return headers(namespace) | {entry.file: text}


def kernel_entry(config: AttentionConfig, *, namespace: str = DEFAULT_NAMESPACE) -> KernelEntry:
    """The manifest entry of one kernel."""
    return _unit(config, namespace)[0]


def headers(namespace: str = DEFAULT_NAMESPACE) -> dict[str, str]:
    """{path: text} of the headers, sorted by path."""
    return dict(_headers(checked(namespace)))


def _unit(config: AttentionConfig, namespace: str) -> tuple[KernelEntry, str]:
    """The entry and the text of one kernel; the digest covers the text with no digest in it."""
    namespace = checked(namespace)
    tile = tiling(config)
    symbol = symbol_of(config.name, namespace)
    hashed = _header_hash(namespace).copy()
    file = f"kernels/{config.name}.cu"
    _add_field(hashed, file, _unit_text(config, tile, namespace, symbol, digest=""))
    digest = hashed.hexdigest()
    arguments = params.arguments_of(config.arch)
    entry = KernelEntry(
        name=config.name,
        file=file,
        symbol=symbol,
        arch=config.arch.value,
        threads=tile.threads,
        shared_bytes=tile.shared_bytes,
        config=config.axes(),
        digest=digest,
        tile=TileEntry(tile.cta_q, tile.cta_s, tile.warps, tile.stages, tile.ctas_per_sm),
        persistent=tile.persistent,
        argument_bytes=params.size_of(arguments),
        argument_align=params.align_of(arguments),
        gencode=_gencode(config.arch),
        reduction=reduction_of(config).name if config.mode in (Mode.PREFILL, Mode.DECODE) else None,
    )
    return entry, _unit_text(config, tile, namespace, symbol, digest)


def _unit_text(
    config: AttentionConfig, tile: Tiling, namespace: str, symbol: str, digest: str
) -> str:
    template = "reduce.cu.j2" if config.mode is Mode.REDUCE else "unit.cu.j2"
    return _render(
        template,
        config=config,
        tiling=tile,
        namespace=namespace,
        symbol=symbol,
        digest=digest,
        tool_version=__version__,
        cpp=_spellings(config),
    )


def _spellings(config: AttentionConfig) -> dict[str, str]:
    """How C++ writes the axes that are types or enumerators."""
    cpp = {"dtype": _CPP_DTYPE[config.dtype], "arch": _CPP_ARCH[config.arch]}
    if config.cache is not None:
        cpp["cache"] = _CPP_CACHE[config.cache]
    if config.mask is not None:
        cpp["mask"] = _CPP_MASK[config.mask]
    if config.tile:
        cpp["tile"] = f"Tile<{', '.join(re.findall('[0-9]+', config.tile))}>"
    return cpp


def _gencode(arch: Arch) -> str:
    return f"-gencode=arch=compute_{_CAPABILITY[arch]},code=sm_{_CAPABILITY[arch]}"


@cache
def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    texts = {path: moved(text, namespace) for path, text in _verbatim()}
    texts[PARAMS_PATH] = _render(
        "params.h.j2", namespace=namespace, tool_version=__version__, **params.template_context()
    )
    return tuple(sorted(texts.items()))


@cache
def _header_hash(namespace: str) -> hashlib._Hash:
    hashed = hashlib.sha256()
    for path, text in _headers(namespace):
        _add_field(hashed, path, text)
    return hashed


def _add_field(hashed: hashlib._Hash, label: str, text: str) -> None:
    """One labelled field; the lengths keep neighbours apart."""
    content = text.encode()
    hashed.update(f"{len(label)}:{label}:{len(content)}:".encode())
    hashed.update(content)


@cache
def _verbatim() -> tuple[tuple[str, str], ...]:
    """(path, text) of the plain CUDA headers."""
    root = _package().joinpath("cuda", "attn")
    found = tuple(_walk(root, "attn"))
    if not found:
        raise RenderError(
            f"no headers in {root}: reinstall attn-codegen, its templates are missing"
        )
    return found


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, str]]:
    if not folder.is_dir():
        return
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{path}/{item.name}")
        elif item.name.endswith(_HEADER_SUFFIXES) and not item.name.startswith("."):
            yield f"{path}/{item.name}", item.read_text(encoding="utf-8")


def _package() -> Traversable:
    try:
        return files("attn_templates")
    except ModuleNotFoundError:
        raise RenderError(
            "the package attn_templates is missing: install attn-codegen, or add templates/ of "
            "the checkout to PYTHONPATH"
        ) from None


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template_source),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def _template_source(name: str) -> str | None:
    item = _package().joinpath("jinja", name)
    return item.read_text(encoding="utf-8") if item.is_file() else None


def _render(template: str, **context: object) -> str:
    try:
        return _environment().get_template(template).render(**context)
    except TemplateNotFound:
        raise RenderError(
            f"template {template} is missing from attn_templates: reinstall attn-codegen"
        ) from None
