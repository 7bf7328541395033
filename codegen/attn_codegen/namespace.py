# SPDX-License-Identifier: Apache-2.0
"""The C++ namespace of the generated code: what may be one, and how a text is moved to it."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from attn_codegen.errors import ConfigError

DEFAULT_NAMESPACE: Final = "attn"

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*")
_KEYWORDS: Final = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
    class compl const const_cast constexpr continue decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
    reinterpret_cast return short signed sizeof static static_assert static_cast struct switch
    template this thread_local throw true try typedef typeid typename union unsigned using virtual
    void volatile wchar_t while xor xor_eq
    """.split()  # noqa: SIM905  (a table of words)
)
_RENAMED: Final = (
    (re.compile(r"\bnamespace attn\b"), "namespace {0}"),
    (re.compile(r"\battn::"), "{0}::"),
    # not a file attn/attn_..., nor a package of this tool
    (re.compile(r"(?<![/\w])attn_(?!(?:codegen|runtime|templates)\b)"), "{0}_"),
    (re.compile(r"\bATTN_"), "{1}_"),
)


@cache
def checked(namespace: str) -> str:
    """The namespace itself when it can stand in C++ and in an extern "C" symbol.

    Raises ConfigError otherwise.
    """
    if not _IDENTIFIER.fullmatch(namespace) or namespace in _KEYWORDS or namespace == "std":
        raise ConfigError(
            f"namespace {namespace!r} cannot be used in C++: use one identifier of letters, digits "
            "and single underscores that starts with a letter and is no keyword, such as "
            "vendor_attn"
        )
    return namespace


def symbol_of(name: str, namespace: str) -> str:
    """The extern "C" entry of a kernel: its name, prefixed unless the namespace is the default."""
    return name if namespace == DEFAULT_NAMESPACE else f"{namespace}_{name}"


def moved(text: str, namespace: str) -> str:
    """The text with namespace attn renamed, and with it the prefix of its C functions, types and
    constants and of its CMake names; include paths keep their attn/."""
    if namespace == DEFAULT_NAMESPACE:
        return text
    for pattern, replacement in _RENAMED:
        text = pattern.sub(replacement.format(namespace, namespace.upper()), text)
    return text
