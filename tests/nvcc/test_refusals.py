# SPDX-License-Identifier: Apache-2.0
"""What C++ refuses is told by the field, with what was given, what is allowed and what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("refusals.cpp")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Wsign-conversion",
    "-Werror",
)
"""What strict engines compile the headers with that they include."""
EXPECTED = (
    "accepted",
    "q | q is null: give a device address",
    "q | q is address 8: it must be a multiple of 16, since kernels read and write 16 bytes at a "
    "time",
    "stride | stride is 1023 elements: it must be a multiple of 8, so that every row is aligned to "
    "16 bytes",
    "stride | stride is 0: give the elements from the row of one token to that of the next",
    "accepted",
    "size_per_head | size_per_head is 64, but this kernel was compiled for 128: take the kernel of "
    "your head size",
    "size_per_head_v | size_per_head_v is 192, but this kernel was compiled for 128: take the "
    "kernel of your head size",
    "kv_type | kv_type is int8, but this kernel was compiled for same: take the kernel of your "
    "cache's elements",
    "inv_sqrt_dh | inv_sqrt_dh is nan: the softmax scale must be finite and above 0, usually "
    "1 / sqrt(size_per_head)",
    "sinks | sinks is given, but only decode kernels add sinks: leave it null",
    "block_iter_params.layer_offset | block_iter_params.layer_offset is 8 bytes: it must be a "
    "multiple of 16",
    "paged_iter_params.k_head_stride | paged_iter_params.k_head_stride is 4 elements: it must be a "
    "multiple of 8, so that every row is aligned to 16 bytes",
    "accepted",
    "paged_iter_params.v_token_stride | paged_iter_params.v_token_stride is 0: give the elements "
    "from the row of one token to that of the next",
    "linear_iter_params.k_token_stride | linear_iter_params.k_token_stride is 0: give the elements "
    "from the row of one token to that of the next",
    "cp_fn | cp_fn is null, but keys are spread over 2 ranks: give a function that gathers their "
    "parts, or set cp_form to kPartOnly",
    "linear_iter_params.cu_rows | linear_iter_params.cu_rows is null, but cu_k_len counts keys of "
    "all 2 ranks: give the first row of each sequence in this rank's K and V",
    "accepted",
    "cp_out_stride | cp_out_stride is 1016: the heads of a token take 1024 elements; 0 lays tokens "
    "back to back",
    "split_size | split_cnt is 2 and split_size is 512: set one of them, the other is 0",
    "v | v is null: give a device address",
    "k | k is address 264: it must be a multiple of 16, since kernels read and write 16 bytes at a "
    "time",
    "offset_q | offset_q is given with new rows of K and V, which are the last keys of a sequence, "
    "as are their queries: leave it null, or k and v",
    "cp_size | cp_size is 2 with new rows of K and V: let a cache writer write those of each rank, "
    "and leave k and v null",
    "v_stride | v_stride is 0: give the elements from the row of one token to that of the next",
    "accepted",
    "paged_iter_params.block_table | paged_iter_params.block_table is null: give a device address",
    "accepted",
    "cp_stride | cp_stride is 101: a part takes 100 floats, and starts at an even one",
    "cp_stride | cp_stride is 98: a part takes 100 floats, and starts at an even one",
    "workspace | workspace is null: this call is split, or its keys are spread over ranks; give "
    "1000 bytes",
    "workspace | workspace has 10 bytes, and this call needs 1000 (workspace_size): give more, or "
    "split less (fit_workspace, max_split_k)",
    "workspace | workspace is address 8: it must be a multiple of 256, as cudaMalloc gives them",
)


def test_every_refusal_says_what_got_what_is_allowed_and_what_to_do(
    host_program: Callable[..., Path],
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run([host_program(*WARNINGS, SOURCE)]).stdout.splitlines() == list(EXPECTED)
