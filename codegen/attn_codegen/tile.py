# SPDX-License-Identifier: Apache-2.0
"""What a tile is, and the sizes that every family counts in."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import AttentionConfig, KvDtype

WARP_THREADS = 32
ELEMENT_BYTES = 2  # f16, bf16
PANEL = 64  # elements: a row in shared memory is a multiple of 128 bytes
ROW_BYTES = 128
PAIR_BYTES = 4
KV_BITS = {KvDtype.SAME: 16, KvDtype.INT8: 8, KvDtype.INT4: 4, KvDtype.E4M3: 8}
# What a CTA may use on the smallest devices that the family serves: 8.6, 8.9 and 12.0 have 100 KiB
# per SM and reserve 1 KiB per CTA.
SM80_SHARED_LIMIT = 99 * 1024
SM90_SHARED_LIMIT = 227 * 1024  # of one CTA, which then has the SM to itself
CLUSTER_CTAS = 8  # the largest cluster that every device with clusters has


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a CTA is shaped.

    cta_q: query rows of a CTA (reduction: rows that it merges; writer: rows that it writes at a
    time).
    cta_s: keys of a tile. stages: tiles of K and V in shared memory. ctas_per_sm: what
    __launch_bounds__ leaves registers for. shared_bytes: dynamic shared memory. persistent: a CTA
    takes tiles until none is left. packed_heads: most query heads of a group that its rows may
    belong to. Of sm90 only: query_slots, tiles of Q in shared memory, more than 1 where the next
    arrives while one is computed; key_groups, warpgroups that share the keys of the same rows;
    softmax, which of sm90::SoftmaxForm; merged_splits, CTAs of a cluster that merge the splits of a
    tile, at most (1: the reduction does); code_stages, tiles of K and V in codes, over a quantised
    cache. Of writers only: lanes, threads of a row. Of decode only: plain, plain calls have a
    kernel of their own in the unit; cluster_ctas, most CTAs of a cluster of that one.
    """

    cta_q: int
    cta_s: int
    warps: int
    stages: int
    ctas_per_sm: int
    shared_bytes: int
    persistent: bool = False
    packed_heads: int = 1
    query_slots: int = 0
    key_groups: int = 1
    softmax: str = ""
    merged_splits: int = 1
    code_stages: int = 0
    lanes: int = 0
    plain: bool = False
    cluster_ctas: int = 1

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.warps * WARP_THREADS


def key_bytes(config: AttentionConfig) -> int:
    """Of K and V of a token and KV head, but for the pairs of codes."""
    return (config.head_dim + config.head_dim_v) * KV_BITS[config.kv_dtype] // 8


def round_up(value: int, step: int) -> int:
    """To a multiple of `step`."""
    return -(-value // step) * step


def padded(columns: int) -> int:
    """Columns of a row in shared memory."""
    return round_up(columns, PANEL)
