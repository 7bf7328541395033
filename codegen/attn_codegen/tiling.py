# SPDX-License-Identifier: Apache-2.0
"""From a configuration to its tile shape, warps, stages and shared memory; no other module but
the tables of each family (tiles_*.py) does this arithmetic."""

from __future__ import annotations

from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_codegen.tile import (
    ELEMENT_BYTES,
    WARP_THREADS,
    Tiling,
)
from attn_codegen.tiles_decode import decode_tiles
from attn_codegen.tiles_sm80 import sm80_tiles
from attn_codegen.tiles_sm90 import sm90_tiles

REDUCE_WARPS = 4
WRITE_WARPS = 4
WRITE_CTAS = 8  # of an SM: what leaves a thread registers for its pieces of two steps
WRITE_PIECES = 2  # of 16 bytes of a row of K and of V: what a thread has
WRITE_PLACE_BYTES = 32  # where a row of K and of V lies, and where it goes
WRITE_SCALE_BYTES = 8  # of e4m3, one of K and one of V
WRITE_PAIR_BYTES = 16  # where their pairs go


def tilings(config: AttentionConfig) -> dict[str, Tiling]:
    """Every tile that a configuration can be compiled with, by its name axis; "" is the default."""
    if config.mode is Mode.REDUCE:
        return {"": Tiling(REDUCE_WARPS, 0, REDUCE_WARPS, 0, ctas_per_sm=4, shared_bytes=0)}
    if config.mode is Mode.WRITE:
        return {"": _write(config)}
    if config.mode is Mode.DECODE:
        return decode_tiles(config)
    if config.arch is Arch.SM90:
        return sm90_tiles(config)
    return sm80_tiles(config)


def tiling(config: AttentionConfig) -> Tiling:
    """The tile that the configuration names.

    Raises KeyError for a tile word that `tilings` does not list; a rule of `space` refuses it.
    """
    return tilings(config)[config.tile]


def _write(config: AttentionConfig) -> Tiling:
    """A row is read by half as many threads as it has pieces of 16 bytes, rounded up to a power of
    two; cta_q counts the rows of a step, each of one token and head. Shared memory holds the places
    of 32 rows of each warp. What a thread does once for a row counts where memory is fast: on
    codes, one piece a thread was up to 6 % slower, and four, with fewer threads, up to 24 %
    (measured on an H200)."""
    pieces = max(config.head_dim, config.head_dim_v) * ELEMENT_BYTES // 16
    lanes = 1 << max(-(-pieces // WRITE_PIECES) - 1, 0).bit_length()
    threads = WRITE_WARPS * WARP_THREADS
    extra = WRITE_PAIR_BYTES if config.kv_dtype.has_pairs else WRITE_SCALE_BYTES
    return Tiling(
        threads // lanes,
        cta_s=0,
        warps=WRITE_WARPS,
        stages=0,
        ctas_per_sm=WRITE_CTAS,
        shared_bytes=threads * (WRITE_PLACE_BYTES + extra),
        persistent=True,
        lanes=lanes,
    )
