# SPDX-License-Identifier: Apache-2.0
"""Which headers a text is compiled with: the closure over `#include "attn/..."`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def direct(text: str) -> tuple[str, ...]:
    """The paths that a text includes in quotes, in order."""
    return tuple(_INCLUDE.findall(text))


def closure(roots: tuple[str, ...], texts: Mapping[str, str]) -> tuple[str, ...]:
    """The headers that `roots` name, with all that these include, sorted.

    Raises KeyError for one that is not among the texts.
    """
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += direct(texts[path])
    return tuple(sorted(found))
