# SPDX-License-Identifier: Apache-2.0
"""Lists and numbers as sentences have them."""

from __future__ import annotations

from typing import Any


def join_words(words: Any, last: str = "or") -> str:
    """'a', 'a or b', 'a, b or c'."""
    listed = [str(word) for word in words]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} {last} {listed[-1]}"


def counted(number: int, word: str, words: str = "") -> str:
    """'1 kernel', '2 kernels'; `words` is the plural of a word that takes more than an s."""
    return f"{number} {word if number == 1 else words or f'{word}s'}"
