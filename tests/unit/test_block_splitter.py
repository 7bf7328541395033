# SPDX-License-Identifier: Apache-2.0
"""Blocks and rows of tokens, with a shift, a division or a multiplication, against Python's."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LAST = 2**31 - 1
MAIN = """
#include <iostream>

// What the device has.
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

#include "attn/block_splitter.cuh"

template <class Splitter>
void print(int block_len, int token) {
  const Splitter splitter = Splitter::make(block_len);
  std::cout << splitter.block(token) << ' ' << splitter.row(token) << '\\n';
}

// Per line: 0 (splitter) or 1 (divider) block_len token
int main() {
  for (int divides, block_len, token; std::cin >> divides >> block_len >> token;) {
    (divides ? print<attn::BlockDivider> : print<attn::BlockSplitter>)(block_len, token);
  }
}
"""


def problems() -> list[tuple[int, int]]:
    """(block_len, token): every short length and lengths of all sizes, tokens around their blocks'
    ends."""
    rng = random.Random(5)
    lengths = [*range(1, 300), *(2**i + d for i in range(9, 31) for d in (-1, 0, 1)), LAST]
    lengths += [rng.randrange(1, 2 ** rng.randrange(1, 32)) for _ in range(300)]
    found = []
    for length in lengths:
        blocks = [0, 1, LAST // length, rng.randrange(LAST // length + 1)]
        tokens = {block * length + d for block in blocks for d in (-1, 0, 1)}
        tokens |= {LAST, rng.randrange(LAST)}
        found += [(length, token) for token in sorted(tokens) if 0 <= token <= LAST]
    return found


@pytest.mark.parametrize("divides", [0, 1], ids=["splitter", "divider"])
def test_every_token_is_in_its_block(
    divides: int, compile_main: Callable[[str, str], Path]
) -> None:
    program = compile_main(f"block_splitter_{divides}", MAIN)
    asked = problems()
    lines = "".join(f"{divides} {length} {token}\n" for length, token in asked)
    printed = subprocess.run(
        [program], input=lines, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(printed) == len(asked)
    for (length, token), line in zip(asked, printed, strict=True):
        assert tuple(map(int, line.split())) == divmod(token, length), (length, token)
