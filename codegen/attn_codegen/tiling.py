# SPDX-License-Identifier: Apache-2.0
"""From a configuration to its tile shape, warps, stages and shared memory; no other module does
this arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import AttentionConfig, Cache, Mode

WARP_THREADS = 32
ELEMENT_BYTES = 2  # f16, bf16
ROW_ADDRESS_BYTES = 16  # addresses of a K row and of a V row
QUERY_TILE_BYTES = 128  # what a CTA works on, kept for its last stage
PANEL = 64  # elements: a row in shared memory is a multiple of 128 bytes

# What a CTA may use on the smallest devices that the family serves: 8.6, 8.9 and 12.0 have 100 KiB
# per SM and reserve 1 KiB per CTA.
SM80_SHARED_LIMIT = 99 * 1024
REDUCE_WARPS = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a CTA is shaped.

    cta_q: query rows of a CTA (reduction: rows that it merges). cta_s: keys of a tile. stages:
    tiles of K and V in shared memory. ctas_per_sm: what __launch_bounds__ leaves registers for.
    shared_bytes: dynamic shared memory.
    """

    cta_q: int
    cta_s: int
    warps: int
    stages: int
    ctas_per_sm: int
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.warps * WARP_THREADS


def tilings(config: AttentionConfig) -> dict[str, Tiling]:
    """Every tile that a configuration can be compiled with, by its name axis; "" is the default."""
    if config.mode is Mode.REDUCE:
        return {"": Tiling(REDUCE_WARPS, 0, REDUCE_WARPS, 0, 1, 0)}
    return {"": _sm80_prefill(config)}


def tiling(config: AttentionConfig) -> Tiling:
    """The tile that the configuration names.

    Raises KeyError for a tile word that `tilings` does not list; a rule of `space` refuses it before.
    """
    return tilings(config)[config.tile]


def _sm80_prefill(config: AttentionConfig) -> Tiling:
    """Tiles that fit 99 KiB with two stages, so that every device from 8.0 on runs them.

    Up to 128 columns, a warp holds 32 rows: each fragment of K and V read from shared memory then
    feeds two products. Up to 64, there is room for 128 keys, and a longer tile has less to do
    between products. Wider outputs leave registers for 16 rows only, and shared memory for 32 keys.
    """
    width = max(_padded(config.head_dim), _padded(config.head_dim_v))
    if width <= 64:
        return _sized(config, cta_q=128, cta_s=128, warps=4, ctas_per_sm=2)
    if width <= 128:
        return _sized(config, cta_q=128, cta_s=64, warps=4, ctas_per_sm=2)
    if width <= 192:
        return _sized(config, cta_q=128, cta_s=32, warps=8, ctas_per_sm=1)
    return _sized(config, cta_q=64, cta_s=32, warps=4, ctas_per_sm=2)


def _sized(
    config: AttentionConfig, *, cta_q: int, cta_s: int, warps: int, ctas_per_sm: int
) -> Tiling:
    """Adds the shared memory of sm80::PrefillStorage: Q (later the output), the rings of K and V,
    row addresses, what the CTA works on."""
    stages = 2
    width, width_v = _padded(config.head_dim), _padded(config.head_dim_v)
    query = cta_q * max(width, width_v)
    ring = stages * cta_s * (width + width_v)
    addresses = 0 if config.cache is Cache.LINEAR else 2 * cta_s * ROW_ADDRESS_BYTES
    shared_bytes = (query + ring) * ELEMENT_BYTES + addresses + QUERY_TILE_BYTES
    return Tiling(cta_q, cta_s, warps, stages, ctas_per_sm, shared_bytes)


def _padded(columns: int) -> int:
    return -(-columns // PANEL) * PANEL
