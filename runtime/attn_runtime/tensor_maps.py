# SPDX-License-Identifier: Apache-2.0
"""What a kernel that reads by TMA takes beside the params and the plan: tensor maps.

Pure. attn/tma_arguments.h is the C++ twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Final

from attn_codegen.config import AttentionConfig, Cache
from attn_codegen.tile import KV_BITS, Tiling
from attn_runtime.kv_cache import Values
from attn_runtime.plan import Plan

PANEL_COLUMNS: Final = 64
"""Columns of a box: 128 bytes, the span of the swizzle."""
QUERY_ROWS: Final = 64
"""Rows of a box of q: those of a warpgroup."""
OUT_ROWS: Final = 16
"""Rows of a box of out: those of a warp."""
LEAST_BOX_ROWS: Final = 16
"""Rows of a box of a cache of blocks, at least: smaller ones take longer than a gather."""
ADDRESS_BASE: Final = 128


@dataclass(frozen=True, slots=True)
class RowsMap:
    """16-bit elements of an argument that boxes of `box_rows` rows by 64 columns are read from or
    written to, of `box_heads` heads side by side. Innermost dimension first; strides in elements,
    the first one's is 1.
    """

    argument: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box_rows: int
    box_heads: int = 1
    address: int | None = None
    """Where the map begins, if not at the argument."""

    @property
    def byte_strides(self) -> tuple[int, ...]:
        """Of all dimensions but the first; one that is never stepped still has to be legal."""
        outer = zip(self.dims[1:], self.strides, strict=True)
        return tuple(2 * (stride if extent > 1 else self.dims[0]) for extent, stride in outer)

    @property
    def box(self) -> tuple[int, ...]:
        """Extents of a box: columns, heads, rows, and one of what is further out."""
        return (PANEL_COLUMNS, self.box_heads, self.box_rows, *(1 for _ in self.dims[3:]))


def maps_of(
    config: AttentionConfig, tile: Tiling, plan: Plan, values: Values
) -> tuple[RowsMap, ...]:
    """The maps of a call. K and V have none where rows must be gathered: there the kernel does not
    read their maps. Rows of q and out are tokens, or packed heads of fewer tokens."""
    pack, heads, tokens = plan.packed_heads, int(values["num_heads"]), int(values["token_num"])
    width, width_v = config.head_dim, config.head_dim_v
    q = RowsMap(
        "q",
        (width, heads, max(1, tokens)),
        (width, int(values["stride"])),
        QUERY_ROWS // pack,
        pack,
    )
    out = RowsMap(
        "out",
        (width_v, heads, max(1, tokens)),
        (width_v, heads * width_v),
        OUT_ROWS // min(pack, OUT_ROWS),
        min(pack, OUT_ROWS),
    )
    keys = {Cache.LINEAR: _linear_maps, Cache.PAGED: _paged_maps, Cache.BLOCK: _block_maps}
    assert config.cache in keys  # a rule of the space
    return (q, *keys[config.cache](config, tile, values), out)


def _words(config: AttentionConfig, elements: int) -> int:
    """16-bit words that elements of the cache take: what maps count in, so that a panel of codes is
    read like one of elements."""
    return elements * KV_BITS[config.kv_dtype] // 16


def _linear_maps(config: AttentionConfig, tile: Tiling, values: Values) -> tuple[RowsMap, ...]:
    """[token_count, num_kv_heads, columns]."""
    owner = "linear_iter_params"
    rows = max(1, int(values[f"{owner}.token_count"]))
    return tuple(
        RowsMap(
            name,
            (_words(config, columns), int(values["num_kv_heads"]), rows),
            tuple(
                _words(config, int(values[f"{owner}.{name}_{step}_stride"]))
                for step in ("head", "token")
            ),
            tile.cta_s,
        )
        for name, columns in (("k", config.head_dim), ("v", config.head_dim_v))
    )


def _paged_maps(config: AttentionConfig, tile: Tiling, values: Values) -> tuple[RowsMap, ...]:
    """[block_count, block_len, num_kv_heads, columns]; a box is the most rows of a tile that always
    lie in one block, where that is LEAST_BOX_ROWS or more.
    """
    owner = "paged_iter_params"
    block_len = int(values[f"{owner}.block_len"])
    if block_len % LEAST_BOX_ROWS:
        return ()
    blocks = max(1, int(values[f"{owner}.block_count"]))
    steps = ("head", "token", "block")
    return tuple(
        RowsMap(
            name,
            (_words(config, columns), int(values["num_kv_heads"]), block_len, blocks),
            tuple(_words(config, int(values[f"{owner}.{name}_{step}_stride"])) for step in steps),
            gcd(block_len, tile.cta_s),
        )
        for name, columns in (("k", config.head_dim), ("v", config.head_dim_v))
    )


def _block_maps(config: AttentionConfig, tile: Tiling, values: Values) -> tuple[RowsMap, ...]:
    """Blocks lie at any address, so one map covers all memory: rows of head_dim elements that begin
    every 16 bytes (dimension 1) from every 16 GiB (dimension 3); the kernel takes an address apart
    into the two. It begins at ADDRESS_BASE, since no map may begin at 0.
    """
    block_len = int(values["block_iter_params.block_len"])
    if block_len % LEAST_BOX_ROWS:
        return ()
    rows = gcd(block_len, tile.cta_s)
    columns = _words(config, config.head_dim)
    dims = (columns, 1 << 30, rows, 1 << 20)
    strides = (8, columns, 1 << 33)
    return tuple(RowsMap(name, dims, strides, rows, address=ADDRESS_BASE) for name in ("k", "v"))
