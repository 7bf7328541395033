// SPDX-License-Identifier: Apache-2.0
// Where the parts of splits and of ranks lie in a workspace. attn_runtime/workspace.py is the twin:
// same names, integers and messages.
#pragma once

#include <cstdint>
#include <limits>

#include "attn/cost.h"
#include "attn/limits.h"
#include "attn/problem.h"

namespace attn {

// Offsets are bytes from the start of the workspace.
struct Workspace {
  std::int64_t partial_O_bytes = 0;
  std::int64_t partial_ML_offset = 0;
  std::int64_t cp_O_offset = 0;  // of this rank's part, where keys are spread over ranks
  std::int64_t cp_ML_offset = 0;
  std::int64_t cp_stride = 0;        // floats from a rank's part to the next
  std::int64_t workspace_bytes = 0;  // 0: no reduction
  int reduce_grid_x = 0;
};

// One warp reduces one row, four rows to a CTA of 128 threads.
inline constexpr int kReduceRowsPerCta = 4;
inline constexpr int kWorkspaceAlignment = 256;  // bytes

namespace detail {

inline constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max();

// a * b for a, b >= 0, refused when it does not fit 64 bits.
inline std::int64_t multiply_bytes(std::int64_t a, std::int64_t b) {
  if (b != 0 && a > kMaxBytes / b) {
    refuse("token_num", "the split workspace exceeds 2^63 bytes: split less, or send fewer tokens");
  }
  return a * b;
}

inline std::int64_t add_bytes(std::int64_t a, std::int64_t b) {
  return a > kMaxBytes - b ? multiply_bytes(kMaxBytes, 2) : a + b;
}

// The next multiple of 256 bytes.
inline std::int64_t align_bytes(std::int64_t bytes) {
  return multiply_bytes(ceil_div(bytes, kWorkspaceAlignment), kWorkspaceAlignment);
}

// Where keys are spread over ranks, room for the parts of all behind what the workspace has so far.
inline void add_parts(const Problem& problem, std::int64_t rows, Workspace& workspace) {
  const std::int64_t begin = align_bytes(workspace.workspace_bytes);
  const std::int64_t O_bytes = multiply_bytes(rows, std::int64_t{4} * problem.head_dim_v);
  const bool gathers_O = problem.cp_form != CpForm::kScaled;
  const std::int64_t part_bytes = add_bytes(gathers_O ? O_bytes : 0, 8 * rows);
  const std::int64_t own = add_bytes(begin, multiply_bytes(problem.cp_rank, part_bytes));
  const std::int64_t end = add_bytes(begin, multiply_bytes(problem.cp_size, part_bytes));
  workspace.cp_stride = part_bytes / 4;
  workspace.cp_ML_offset = gathers_O ? own + O_bytes : own;
  workspace.cp_O_offset = gathers_O ? own : align_bytes(end);
  workspace.workspace_bytes = gathers_O ? end : add_bytes(workspace.cp_O_offset, O_bytes);
}

// Where anything may be split: partial_O float [split_cnt, rows, head_dim_v], then, from the next
// multiple of 256 bytes, partial_ML float [split_cnt, rows, 2]; a row is a head of a token. Where
// keys are spread over ranks, from the next multiple on:
//
//   kScaled               (max, sum) float [cp_size, rows, 2]; from the next multiple on, O float
//                         [rows, head_dim_v] of this rank alone
//   kComplete, kPartOnly  [cp_size] parts: O float [rows, head_dim_v], (max, sum) float [rows, 2]
inline void set_workspace(const Problem& problem,
                          const DeviceLimits& device,
                          std::int64_t splits,
                          Workspace& workspace) {
  if (splits == 1 && problem.cp_size == 1) {
    return;
  }
  const std::int64_t rows = std::int64_t{problem.token_num} * problem.num_heads;
  const std::int64_t reduce_ctas = ceil_div(rows, kReduceRowsPerCta);
  check_grid(reduce_ctas, device, "token_num", "send fewer tokens, or turn splitting off");
  workspace.reduce_grid_x = static_cast<int>(reduce_ctas);
  if (splits > 1) {
    const std::int64_t rows_of_all_splits = multiply_bytes(rows, splits);
    workspace.partial_O_bytes =
        multiply_bytes(rows_of_all_splits, std::int64_t{4} * problem.head_dim_v);
    workspace.partial_ML_offset = align_bytes(workspace.partial_O_bytes);
    workspace.workspace_bytes =
        add_bytes(workspace.partial_ML_offset, multiply_bytes(rows_of_all_splits, 8));
  }
  if (problem.cp_size > 1) {
    add_parts(problem, rows, workspace);
  }
}

// What the reduction of the ranks needs, where the kernel has left this rank's part itself.
inline void set_parts(const Problem& problem, const DeviceLimits& device, Workspace& workspace) {
  const std::int64_t rows = std::int64_t{problem.token_num} * problem.num_heads;
  const std::int64_t reduce_ctas = ceil_div(rows, kReduceRowsPerCta);
  check_grid(reduce_ctas, device, "token_num", "send fewer tokens");
  workspace.reduce_grid_x = static_cast<int>(reduce_ctas);
  add_parts(problem, rows, workspace);
}

}  // namespace detail

}  // namespace attn
