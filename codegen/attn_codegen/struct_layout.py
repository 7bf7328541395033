# SPDX-License-Identifier: Apache-2.0
"""Where the members of the structs of params.py lie, by the rules of C: for `struct` and numpy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from attn_codegen.params import SCALARS, STRUCTS, STRUCTS_BY_NAME

if TYPE_CHECKING:
    import numpy as np


def align_of(name: str) -> int:
    """Alignment of a scalar kind or a struct, in bytes (the C rule: that of the widest member)."""
    if name in SCALARS:
        return SCALARS[name][0]
    return max(align_of(field.kind) for field in STRUCTS_BY_NAME[name].fields)


@cache
def offsets(name: str) -> tuple[int, ...]:
    """Byte offset of each member of a struct, by the C layout rule, and last the end of the last
    member."""
    at, found = 0, []
    for field in STRUCTS_BY_NAME[name].fields:
        at = _round_up(at, align_of(field.kind))
        found.append(at)
        at += size_of(field.kind)
    return (*found, at)


@cache
def size_of(name: str) -> int:
    """Bytes of a scalar kind or a struct, tail padding included."""
    if name in SCALARS:
        return SCALARS[name][0]
    return _round_up(offsets(name)[-1], align_of(name))


def leaves(name: str, prefix: str = "", base: int = 0) -> Iterator[tuple[str, str, int]]:
    """(dotted name, scalar kind, byte offset) of each scalar of a struct, in memory order."""
    for field, offset in zip(STRUCTS_BY_NAME[name].fields, offsets(name), strict=False):
        if field.kind in SCALARS:
            yield prefix + field.name, field.kind, base + offset
        else:
            yield from leaves(field.kind, f"{prefix}{field.name}.", base + offset)


def field_names(name: str) -> tuple[str, ...]:
    """Dotted names of the scalars of a struct, in the order in which `struct_format` packs them."""
    return tuple(leaf for leaf, _, _ in leaves(name))


@cache
def struct_format(name: str) -> str:
    """Format for the `struct` module that packs `field_names(name)` into the C layout, padding
    included."""
    parts, at = ["<"], 0
    for _, kind, offset in leaves(name):
        size, code, _ = SCALARS[kind]
        parts.append(f"{offset - at}x{code}" if offset > at else code)
        at = offset + size
    tail = size_of(name) - at
    return "".join(parts) + (f"{tail}x" if tail else "")


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The struct as a nested numpy dtype with the C offsets; pointers are uint64."""
    import numpy as np

    fields = STRUCTS_BY_NAME[name].fields
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [
                np.dtype(SCALARS[field.kind][2])
                if field.kind in SCALARS
                else numpy_dtype(field.kind)
                for field in fields
            ],
            "offsets": list(offsets(name)[:-1]),
            "itemsize": size_of(name),
        }
    )


def template_context() -> dict[str, Any]:
    """What params.h.j2 needs: the structs and their sizes in bytes."""
    return {"structs": STRUCTS, "sizes": {struct.name: size_of(struct.name) for struct in STRUCTS}}


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
