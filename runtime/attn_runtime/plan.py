# SPDX-License-Identifier: Apache-2.0
"""How a call is cut into CTAs: tiles of query rows, splits of keys, workspace.

Pure: no device is asked, and lengths are known by their bounds only, so that a captured launch
stays right when lengths change within them. The C++ twin is attn/plan.h: same names, integers and
messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from attn_runtime.cost import is_cluster
from attn_runtime.problem import (
    CpForm,
    DeviceLimits,
    KernelLimits,
    KeySharding,
    PlanError,
    Problem,
    SplitKind,
    SplitPolicy,
    ceil_div,
    check,
    check_grid,
)
from attn_runtime.splits import split_bound
from attn_runtime.tiles import columns_of, pack_heads, q_tiles, section_of
from attn_runtime.workspace import Workspace, split_workspace

__all__ = [
    "CpForm",
    "DeviceLimits",
    "KernelLimits",
    "KeySharding",
    "Plan",
    "PlanError",
    "Problem",
    "SplitKind",
    "SplitPolicy",
    "plan",
]


@dataclass(frozen=True, slots=True)
class RangePlan:
    """Which CTA of a decode kernel computes what; the fields are those of attn::RangePlan."""

    ctas: int = 0
    columns: int = 0
    ranges: int = 0
    group: int = 0
    row_heads: int = 0
    head_tiles: int = 0
    row_slots: int = 0
    pieces: int = 0
    aligned_units: int = 0
    streamed_units: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The grid, the splits and the workspace of one call; the fields are those of attn::Plan.

    `q_tiles` counts those of one head, or of one pack: a token has `packed_heads` rows, of heads of
    a group, in a tile of `cta_q` tokens. `tiles_per_sequence` 0: found from cu_q_len by search.
    `split_tiles` 0: equal splits; n: chunks of n key tiles. `grid_x` 0: nothing to launch.
    `workspace_bytes` 0: no reduction. `cp_stride` floats lie between the parts of two ranks.
    `counter_cnt`: the ints that AttentionParams.counters must hold. `cluster` CTAs in a row are a
    cluster, which merges the splits of a tile: no reduction follows, and the workspace, without
    which nothing is split, stays as it was; of decode, one of plain calls.
    `ranges` is of decode alone; where a prefill kernel takes the call, of the decode kernel that
    could.
    """

    q_tiles: int
    tiles_per_sequence: int
    split_cnt: int
    split_tiles: int
    cta_q: int
    cta_s: int
    packed_heads: int
    section: int
    grid_x: int
    threads: int
    shared_bytes: int
    partial_O_bytes: int
    partial_ML_offset: int
    cp_O_offset: int
    cp_ML_offset: int
    cp_stride: int
    workspace_bytes: int
    reduce_grid_x: int
    ranges: RangePlan = RangePlan()  # frozen
    counter_cnt: int = 0
    cluster: int = 1


def plan(problem: Problem, device: DeviceLimits, kernel: KernelLimits, policy: SplitPolicy) -> Plan:
    """Plan one call.

    Raises PlanError that names the field: a value out of range, a split size that needs more splits
    than the workspace holds, or a grid that no device can launch.
    """
    check(problem, device, kernel, policy)
    packed, kernel = pack_heads(problem, kernel, policy)
    tiles = q_tiles(packed, kernel.cta_q)
    sized = policy.kind is SplitKind.FIXED_SIZE
    split_tiles = ceil_div(policy.value, kernel.cta_s) if sized else 0
    splits, section, grid, cluster = 1, 1, 0, 1
    if tiles.total:
        fewer = "send fewer tokens at a time"
        check_grid(tiles.total, device, "token_num", fewer)
        check_grid(tiles.total * packed.num_heads, device, "token_num", fewer)
        splits = split_bound(packed, device, kernel, policy, split_tiles)
        section = section_of(packed, device, kernel, tiles)
        grid = tiles.total * packed.num_heads * splits
        request = "split_size" if sized else "split_cnt"
        check_grid(grid, device, request, "split less, or send fewer tokens at a time")
        if is_cluster(tiles.total * packed.num_heads, device, kernel, splits):
            cluster, section = splits, columns_of(packed, tiles)
    workspace = split_workspace(problem, device, splits) if tiles.total else Workspace()
    return Plan(
        q_tiles=tiles.total,
        tiles_per_sequence=tiles.per_sequence,
        split_cnt=splits,
        split_tiles=split_tiles,
        cta_q=kernel.cta_q,
        cta_s=kernel.cta_s,
        packed_heads=kernel.packed_heads,
        section=section,
        grid_x=grid,
        threads=kernel.threads,
        shared_bytes=kernel.shared_bytes,
        partial_O_bytes=workspace.partial_O_bytes,
        partial_ML_offset=workspace.partial_ML_offset,
        cp_O_offset=workspace.cp_O_offset,
        cp_ML_offset=workspace.cp_ML_offset,
        cp_stride=workspace.cp_stride,
        workspace_bytes=workspace.total_bytes,
        reduce_grid_x=workspace.reduce_grid_x if cluster == 1 else 0,
        counter_cnt=kernel.tile_counters if grid else 0,
        cluster=cluster,
    )
