# SPDX-License-Identifier: Apache-2.0
"""What makes a C++ library of the kernels, as data for the templates: families, the lines of the
kernel list, and the structs of the C ABI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from attn_codegen import params
from attn_codegen.config import Arch, AttentionConfig, KvDtype, Mode

ANY_LATER: Final = 9999


@dataclass(frozen=True, slots=True)
class Family:
    """The compute capabilities (80: 8.0) that run the kernels of a family, and what nvcc makes
    them for: one with a letter runs on that device alone. attn/dispatch.h says the same in C++."""

    arch: Arch
    first: int
    last: int
    compiled: str


FAMILIES: Final = (
    Family(Arch.SM70, 70, 74, "70"),
    Family(Arch.SM75, 75, 79, "75"),
    Family(Arch.SM80, 80, ANY_LATER, "80"),
    Family(Arch.SM90, 90, 90, "90a"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A kernel in the kernel list; `words` is its C++ type as attn/words.h has it. `reduction` is
    "" where it has no splits."""

    name: str
    arch: str
    reduction: str
    words: str


def line_of(config: AttentionConfig, reduction: str | None) -> Line:
    """The line of a kernel whose splits `reduction` merges, or of a cache writer."""
    axes = [config.arch, config.dtype, config.head_dim, config.head_dim_v, config.cache]
    is_quantised = config.kv_dtype is not KvDtype.SAME
    words = [str(axis) for axis in axes]
    if config.mode is not Mode.WRITE:
        words.append(str(config.mask))
        if config.tile or is_quantised:
            words.append(tile_type(config.tile) if config.tile else "DefaultTile")
    if is_quantised:
        words.append(str(config.kv_dtype))
    return Line(
        config.name, config.arch.value, reduction or "", f"{config.mode}<{', '.join(words)}>"
    )


def tile_type(word: str) -> str:
    """The C++ type of a tile word: Tile<192, 128> of t192x128."""
    return f"Tile<{', '.join(re.findall('[0-9]+', word))}>"


@dataclass(frozen=True, slots=True)
class CField:
    """A member of a C struct."""

    c: str
    name: str
    doc: str


@dataclass(frozen=True, slots=True)
class CStruct:
    """A struct of the C ABI, with the members of its C++ twin in the same order."""

    name: str
    doc: tuple[str, ...]
    fields: tuple[CField, ...]


_C_STRUCTS: Final = {
    params.LINEAR.name: "attn_linear_iterator_params_t",
    params.BLOCK.name: "attn_block_iterator_params_t",
    params.PAGED.name: "attn_paged_iterator_params_t",
    params.PARAMS.name: "attn_params_t",
}
_C_ENUMS: Final = {
    "CacheType": "attn_cache_t",
    "KvType": "attn_kv_type_t",
    "KeySharding": "attn_key_sharding_t",
    "CpForm": "attn_cp_form_t",
}
_C_TYPES: Final = _C_STRUCTS | {
    **dict.fromkeys(_C_ENUMS, "int"),
    "CpCallback": "attn_callback_t",
    "CUstream_st*": "void*",
}
# What only C has: C++ knows the size of a struct, and T is a template argument there.
_C_MEMBERS: Final = (
    CField("size_t", "struct_size", "sizeof(attn_params_t)"),
    CField("int", "dtype", "T: an attn_dtype_t"),
    CField("int", "mode", "an attn_mode_t"),
)


def c_structs() -> tuple[CStruct, ...]:
    """AttentionParams and the structs in it for C, from their one declaration."""
    return tuple(_c_struct(params.STRUCTS_BY_NAME[name]) for name in _C_STRUCTS)


def _c_struct(struct: params.Struct) -> CStruct:
    fields = (CField(_c_type(field.cpp), field.name, _c_doc(field)) for field in struct.fields)
    first = _C_MEMBERS if struct is params.PARAMS else ()
    return CStruct(_C_STRUCTS[struct.name], tuple(struct.doc.split("\n")), (*first, *fields))


def _c_type(cpp: str) -> str:
    """C spells pointers to T as pointers to void, and enumerations as int."""
    return _C_TYPES.get(cpp) or re.sub(r"\bT\b", "void", cpp)


def _c_doc(field: params.Field) -> str:
    """An int that holds an enumerator is told by the enumeration's name."""
    name = _C_ENUMS.get(field.cpp)
    return f"an {name}: {field.doc}" if name else field.doc
