# SPDX-License-Identifier: Apache-2.0
"""Which decode problems are timed, and how many bytes each must read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from attn_codegen.config import KvDtype, Mask
from attn_runtime.bench.codes import row_bytes
from attn_runtime.bench.shapes import Heads, Shape, short

BATCHES: Final = (1, 8, 32, 64, 128)
CONTEXTS: Final = (1024, 4096, 16_384)
STREAM_BYTES: Final = 256 << 20
"""What back-to-back launches read before any of it comes again: more than any L2 holds."""
_FEWEST_LAUNCHES: Final = 8


@dataclass(frozen=True, slots=True)
class DecodeCell:
    """A batch, and over how many copies of its cache launches rotate."""

    shape: Shape
    rotation: int
    kv_dtype: KvDtype = KvDtype.SAME

    @property
    def launches(self) -> int:
        """Of one graph: every copy is read as often."""
        return self.rotation * -(-_FEWEST_LAUNCHES // self.rotation)

    @property
    def kv_bytes(self) -> int:
        """What one launch reads of K and V."""
        return kv_bytes(self.shape, self.kv_dtype)


def kv_bytes(shape: Shape, kv_dtype: KvDtype = KvDtype.SAME) -> int:
    """Of K and V of every sequence; queries and outputs are next to nothing."""
    row = shape.heads.num_kv_heads * row_bytes(kv_dtype, shape.heads.head_dim)
    return 2 * shape.key_num * row


def decode_cells(
    batches: Sequence[int],
    contexts: Sequence[int],
    heads: Heads,
    queries: int = 1,
    *,
    is_ragged: bool = False,
    kv_dtype: KvDtype = KvDtype.SAME,
) -> list[DecodeCell]:
    """Every batch size with every context length; ragged: lengths drawn uniformly from 1 to it."""
    cells = []
    for batch in batches:
        for context in contexts:
            rng = np.random.default_rng(batch * context)
            drawn = rng.integers(1, context + 1, batch) if is_ragged else [context] * batch
            k_lens = tuple(int(length) for length in drawn)
            word = f"1..{short(context)}" if is_ragged else short(context)
            shape = Shape((queries,) * batch, k_lens, heads, Mask.CAUSAL, f"{batch} x {word}", "")
            rotation = max(1, -(-STREAM_BYTES // kv_bytes(shape, kv_dtype)))
            cells.append(DecodeCell(shape, rotation, kv_dtype))
    return cells
