# SPDX-License-Identifier: Apache-2.0
"""What a kernel that reads by TMA takes beside the params: tensor maps, and how it is scheduled.

Pure. attn/tma_arguments.h is the C++ twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attn_codegen.config import AttentionConfig, Cache, Mask
from attn_codegen.tiling import Tiling
from attn_runtime.kv_cache import Values
from attn_runtime.plan import Plan

PANEL_COLUMNS: Final = 64
"""Columns of a box: 128 bytes, the span of the swizzle."""
QUERY_BOX: Final = 64
"""Tokens of a box of q: the rows of a warpgroup."""
OUT_BOX: Final = 16
"""Tokens of a box of out: the rows of a warp."""
L2_BYTES: Final = 32 << 20
LEAST_SECTION: Final = 16


@dataclass(frozen=True, slots=True)
class RowsMap:
    """Rows of 16-bit elements [tokens][heads][columns] that boxes of one head's `box_tokens` rows
    are read from or written to. Strides in elements; the columns of a row are dense."""

    argument: str
    columns: int
    heads: int
    tokens: int
    head_stride: int
    token_stride: int
    box_tokens: int

    @property
    def dims(self) -> tuple[int, int, int]:
        """Elements, innermost first."""
        return (self.columns, self.heads, max(self.tokens, 1))

    @property
    def byte_strides(self) -> tuple[int, int]:
        """Of heads and tokens; one that is never stepped still has to be a legal one."""
        head = self.head_stride if self.heads > 1 else self.columns
        token = self.token_stride if self.tokens > 1 else self.columns
        return (2 * head, 2 * token)


def maps_of(config: AttentionConfig, tile: Tiling, values: Values) -> tuple[RowsMap, ...]:
    """The maps of a call, in the order in which TmaArguments holds them: q, k, v, out.

    K and V are left out where the cache is not linear.
    """
    heads, kv_heads = int(values["num_heads"]), int(values["num_kv_heads"])
    tokens = int(values["token_num"])
    width, width_v = config.head_dim, config.head_dim_v
    q = RowsMap("q", width, heads, tokens, width, int(values["stride"]), QUERY_BOX)
    out = RowsMap("out", width_v, heads, tokens, width_v, heads * width_v, OUT_BOX)
    if config.cache is not Cache.LINEAR:
        return (q, out)
    rows = int(values["linear_iter_params.token_count"])
    k, v = (
        RowsMap(
            name,
            columns,
            kv_heads,
            rows,
            int(values[f"linear_iter_params.{name}_head_stride"]),
            int(values[f"linear_iter_params.{name}_token_stride"]),
            tile.cta_s,
        )
        for name, columns in (("k", width), ("v", width_v))
    )
    return (q, k, v, out)


def section_of(config: AttentionConfig, values: Values, plan: Plan) -> int:
    """Heads that are scheduled together.

    Under a causal mask the longest tiles of a section come first, so a section is as many heads as
    have their K and V in 32 MiB of L2, and at least 16, so that few CTAs share a head (measured on
    an H200). Without a mask it is the heads of one group.
    """
    heads = int(values["num_heads"])
    columns = heads * (int(values["batch_size"]) if plan.tiles_per_sequence else 1)
    section = group = heads // int(values["num_kv_heads"])
    if config.mask is Mask.CAUSAL:
        head_bytes = int(values["max_k_len"]) * (config.head_dim + config.head_dim_v) * 2
        section = max(LEAST_SECTION, L2_BYTES // max(head_bytes, 1) * group)
    return max(1, min(section, columns))
