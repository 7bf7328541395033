# SPDX-License-Identifier: Apache-2.0
"""Where the parts of splits and of ranks lie in a workspace.

The C++ twin is attn/workspace.h: same names, integers and messages.
"""

from __future__ import annotations

from typing import NamedTuple

from attn_runtime.problem import CpForm, DeviceLimits, PlanError, Problem, ceil_div, check_grid

MAX_BYTES = 2**63 - 1

REDUCE_ROWS_PER_CTA = 4
"""One warp reduces one row, four rows to a CTA of 128 threads."""

WORKSPACE_ALIGNMENT = 256


class Workspace(NamedTuple):
    """Where what lies in a workspace, in bytes."""

    partial_O_bytes: int = 0
    partial_ML_offset: int = 0
    cp_O_offset: int = 0
    cp_ML_offset: int = 0
    cp_stride: int = 0
    total_bytes: int = 0
    reduce_grid_x: int = 0


def split_workspace(problem: Problem, device: DeviceLimits, splits: int) -> Workspace:
    """Where anything may be split: partial_O float [split_cnt, rows, head_dim_v], then, from the
    next multiple of 256 bytes, partial_ML float [split_cnt, rows, 2]; a row is a head of a token.
    Where keys are spread over ranks, from the next multiple on:

    SCALED                 (max, sum) float [cp_size, rows, 2]; from the next multiple on, O float
                           [rows, head_dim_v] of this rank alone
    COMPLETE, PART_ONLY    [cp_size] parts: O float [rows, head_dim_v], (max, sum) float [rows, 2]
    """
    if splits == 1 and problem.cp_size == 1:
        return Workspace()
    rows = problem.token_num * problem.num_heads
    reduce_ctas = ceil_div(rows, REDUCE_ROWS_PER_CTA)
    check_grid(reduce_ctas, device, "token_num", "send fewer tokens, or turn splitting off")
    rows_of_all_splits = rows * splits if splits > 1 else 0
    partial_O_bytes = rows_of_all_splits * 4 * problem.head_dim_v
    partial_ML_offset = aligned(partial_O_bytes)
    parts = Workspace(total_bytes=partial_ML_offset + rows_of_all_splits * 8)
    if problem.cp_size > 1:
        parts = _parts(problem, rows, aligned(parts.total_bytes))
    if parts.total_bytes > MAX_BYTES:
        raise PlanError(
            "token_num",
            "the split workspace exceeds 2^63 bytes: split less, or send fewer tokens",
        )
    return parts._replace(
        partial_O_bytes=partial_O_bytes,
        partial_ML_offset=partial_ML_offset,
        reduce_grid_x=reduce_ctas,
    )


def part_workspace(problem: Problem, device: DeviceLimits, workspace: Workspace) -> Workspace:
    """The workspace, and behind it the parts of the ranks, for a kernel that leaves its own."""
    rows = problem.token_num * problem.num_heads
    reduce_ctas = ceil_div(rows, REDUCE_ROWS_PER_CTA)
    check_grid(reduce_ctas, device, "token_num", "send fewer tokens")
    return _parts(problem, rows, aligned(workspace.total_bytes))._replace(
        partial_O_bytes=workspace.partial_O_bytes,
        partial_ML_offset=workspace.partial_ML_offset,
        reduce_grid_x=reduce_ctas,
    )


def _parts(problem: Problem, rows: int, begin: int) -> Workspace:
    """The parts of the ranks, from byte `begin` of the workspace on."""
    O_bytes = rows * 4 * problem.head_dim_v
    gathers_O = problem.cp_form is not CpForm.SCALED
    part_bytes = (O_bytes if gathers_O else 0) + 8 * rows
    own, end = begin + problem.cp_rank * part_bytes, begin + problem.cp_size * part_bytes
    cp_O_offset = own if gathers_O else aligned(end)
    return Workspace(
        cp_O_offset=cp_O_offset,
        cp_ML_offset=own + O_bytes if gathers_O else own,
        cp_stride=part_bytes // 4,
        total_bytes=end if gathers_O else cp_O_offset + O_bytes,
    )


def aligned(offset: int) -> int:
    """The next multiple of WORKSPACE_ALIGNMENT."""
    return ceil_div(offset, WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
