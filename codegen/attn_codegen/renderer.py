# SPDX-License-Identifier: Apache-2.0
"""Configurations in, {path: text} out: the one Jinja environment, pure and memoised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateNotFound

from attn_codegen import __version__, includes, params, product, struct_layout, templates
from attn_codegen.config import (
    Arch,
    AttentionConfig,
    Cache,
    Dtype,
    KvDtype,
    Mask,
    Mode,
    reduction_of,
)
from attn_codegen.errors import RenderError
from attn_codegen.manifest import FILE_NAME, KernelEntry, Manifest, TileEntry, sha256
from attn_codegen.namespace import DEFAULT_NAMESPACE, checked, moved, symbol_of
from attn_codegen.tile import Tiling
from attn_codegen.tiling import tiling
from attn_codegen.tuning import TileCost, Tuning, shipped

PARAMS_PATH: Final = "attn/params.h"
C_HEADER_PATH: Final = "attn/attn_c.h"
EMITTED_PATH: Final = "attn/emitted.h"
PUBLIC_PATHS: Final = ("attn/attention.h", C_HEADER_PATH)

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

_CPP_KV_DTYPE: Final = {KvDtype.INT8: "Int8", KvDtype.INT4: "Int4", KvDtype.E4M3: "E4m3"}

_UNIT_TEMPLATES: Final = {
    Mode.PREFILL: "unit.cu.j2",
    Mode.DECODE: "decode.cu.j2",
    Mode.WRITE: "write.cu.j2",
    Mode.REDUCE: "reduce.cu.j2",
}

_HEADER_SUFFIXES: Final = (".h", ".cuh")
_HOST_SUFFIX: Final = ".cpp"
_LICENCE: Final = "LICENSE"


def render(
    configs: Iterable[AttentionConfig],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    tuning: Tuning | None = None,
) -> dict[str, str]:
    """Every file of a generated folder, sorted by path: headers, units, what makes a library of
    them, and the manifest.

    The order of the configurations and repeats do not matter. `tuning` says what tiles cost; left
    out, it is the one that comes with the package. Raises ConfigError for a namespace
    that C++ cannot take, RenderError when the templates do not fit.
    """
    texts = headers(namespace) | dict(_host_sources(namespace))
    texts |= templates.verbatim("attn", _LICENCE)  # for those who take the folder alone
    entries, lines = [], []
    for config in sorted(set(configs), key=lambda config: config.name):
        entry, text = _unit(config, namespace, tuning)
        entries.append(entry)
        texts[entry.file] = text
        if config.mode is not Mode.REDUCE:
            lines.append(product.line_of(config, entry.reduction))
    texts |= _library(lines, namespace)
    manifest = Manifest(
        tool_version=__version__,
        namespace=namespace,
        kernels=tuple(entries),
        files={path: sha256(text) for path, text in texts.items()},
    )
    texts[FILE_NAME] = manifest.to_text()
    return dict(sorted(texts.items()))


def unit_sources(config: AttentionConfig, *, namespace: str = DEFAULT_NAMESPACE) -> dict[str, str]:
    """{path: text} of what one kernel is compiled from: its unit and the headers it includes."""
    entry, text = _unit(config, namespace)
    texts = headers(namespace)
    return {path: texts[path] for path in _closure(includes.direct(text), namespace)} | {
        entry.file: text
    }


def kernel_entry(config: AttentionConfig, *, namespace: str = DEFAULT_NAMESPACE) -> KernelEntry:
    """The manifest entry of one kernel."""
    return _unit(config, namespace)[0]


def headers(namespace: str = DEFAULT_NAMESPACE) -> dict[str, str]:
    """{path: text} of the headers that are the same for every choice of kernels, by path."""
    return dict(_headers(checked(namespace)))


def _unit(
    config: AttentionConfig, namespace: str, tuning: Tuning | None = None
) -> tuple[KernelEntry, str]:
    """The entry and the text of one kernel; the digest covers the text with no digest in it."""
    namespace = checked(namespace)
    tile, cost = tiling(config), (tuning or shipped()).cost(config)
    symbol = symbol_of(config.name, namespace)
    file = f"kernels/{config.name}.cu"
    undigested = _unit_text(config, tile, cost, namespace, symbol, digest="")
    hashed = _header_hash(includes.direct(undigested), namespace).copy()
    _add_field(hashed, file, undigested)
    digest = hashed.hexdigest()
    arguments = params.arguments_of(config)
    entry = KernelEntry(
        name=config.name,
        file=file,
        symbol=symbol,
        arch=config.arch.value,
        threads=tile.threads,
        shared_bytes=tile.shared_bytes,
        config=config.axes(),
        digest=digest,
        tile=TileEntry(
            *(tile.cta_q, tile.cta_s, tile.warps, tile.stages, tile.ctas_per_sm),
            *(cost.tile_ns, cost.step_ns),
        ),
        persistent=tile.persistent,
        argument_bytes=struct_layout.size_of(arguments),
        argument_align=struct_layout.align_of(arguments),
        gencode=_gencode(config.arch),
        native=config.mode is Mode.WRITE,
        reduction=reduction_of(config).name if config.mode in (Mode.PREFILL, Mode.DECODE) else None,
    )
    return entry, _unit_text(config, tile, cost, namespace, symbol, digest)


def _unit_text(
    config: AttentionConfig,
    tile: Tiling,
    cost: TileCost,
    namespace: str,
    symbol: str,
    digest: str,
) -> str:
    return _render(
        _UNIT_TEMPLATES[config.mode],
        config=config,
        tiling=tile,
        cost=cost,
        namespace=namespace,
        symbol=symbol,
        digest=digest,
        tool_version=__version__,
        cpp=_spellings(config),
    )


def _spellings(config: AttentionConfig) -> dict[str, str]:
    """How C++ writes the axes that are types or enumerators."""
    cpp = {"dtype": _CPP_DTYPE[config.dtype], "arch": _CPP_ARCH[config.arch]}
    cpp["kv_dtype"] = _CPP_KV_DTYPE.get(config.kv_dtype, "T")
    if config.cache is not None:
        cpp["cache"] = _CPP_CACHE[config.cache]
    if config.mask is not None:
        cpp["mask"] = _CPP_MASK[config.mask]
    if config.tile:
        cpp["tile"] = product.tile_type(config.tile)
    return cpp


def _gencode(arch: Arch) -> str:
    return f"-gencode=arch=compute_{_CAPABILITY[arch]},code=sm_{_CAPABILITY[arch]}"


def _library(lines: list[product.Line], namespace: str) -> dict[str, str]:
    """What depends on the list of kernels: the header that holds it, and the CMake files."""

    def text(template: str, **context: object) -> str:
        rendered = _render(template, tool_version=__version__, kernels=lines, **context)
        return moved(rendered, namespace)

    emitted = text("emitted.h.j2")
    known = headers(namespace) | {EMITTED_PATH: emitted}
    public = includes.closure(PUBLIC_PATHS, known)
    return {
        EMITTED_PATH: emitted,
        "CMakeLists.txt": text("CMakeLists.txt.j2", namespace=namespace),
        "cmake/kernels.cmake": text(
            "kernels.cmake.j2",
            families=product.FAMILIES,
            headers=[path for path in public if path != EMITTED_PATH],
        ),
    }


@cache
def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    texts = {
        path: moved(text, namespace) for path, text in templates.verbatim("attn", _HEADER_SUFFIXES)
    }
    texts[PARAMS_PATH] = _render(
        "params.h.j2",
        namespace=namespace,
        tool_version=__version__,
        **struct_layout.template_context(),
    )
    c_header = _render(
        "attn_c.h.j2",
        structs=product.c_structs(),
        tool_version=__version__,
        version=__version__.split("."),
    )
    texts[C_HEADER_PATH] = moved(c_header, namespace)
    return tuple(sorted(texts.items()))


@cache
def _host_sources(namespace: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (path, moved(text, namespace)) for path, text in templates.verbatim("src", _HOST_SUFFIX)
    )


@cache
def _closure(roots: tuple[str, ...], namespace: str) -> tuple[str, ...]:
    return includes.closure(roots, headers(namespace))


@cache
def _header_hash(roots: tuple[str, ...], namespace: str) -> hashlib._Hash:
    """Over the headers that a unit with these includes is compiled with."""
    hashed = hashlib.sha256()
    texts = headers(namespace)
    for path in _closure(roots, namespace):
        _add_field(hashed, path, texts[path])
    return hashed


def _add_field(hashed: hashlib._Hash, label: str, text: str) -> None:
    """One labelled field; the lengths keep neighbours apart."""
    content = text.encode()
    hashed.update(f"{len(label)}:{label}:{len(content)}:".encode())
    hashed.update(content)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(templates.jinja_source),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def _render(template: str, **context: object) -> str:
    try:
        return _environment().get_template(template).render(**context)
    except TemplateNotFound:
        raise RenderError(
            f"template {template} is missing from attn_templates: reinstall attn-codegen"
        ) from None
