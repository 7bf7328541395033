// SPDX-License-Identifier: Apache-2.0
// A decode call of many rows on a prefill kernel, whose products take 64 rows at a time. Pure, like
// attn/plan.h. attn_runtime/many_rows.py is the twin: same names and integers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attn/choose.h"
#include "attn/decode_plan.h"

namespace attn {

// Rows of a KV head up to which a decode kernel is as fast, where its tile holds them (H200, us of
// 32 rows: 1 x 4k 22.4 and 14.7 of prefill, 32 x 1k 42.1 and 37.3, 8 x 4k 45.7 and 45.5, 32 x 4k
// 131.4 and 133.1).
inline constexpr int kMostDecodeRows = 16;

// Rows of partial results, for each SM, that the splits of any batch have room in.
inline constexpr int kRoomRows = 256;

// Whether a decode call has more rows of a KV head, in a sequence of average length, than are for
// the decode kernel that would take it: than kMostDecodeRows or, over codes, which take prefill
// longer, than its tile holds. One that says how keys are split has not.
inline bool has_many_rows(const Problem& problem,
                          const KernelLimits& decode,
                          const SplitPolicy& policy,
                          bool over_codes) {
  const std::int64_t group = problem.num_heads / problem.num_kv_heads;
  const int most = over_codes ? decode.cta_q : std::min(decode.cta_q, kMostDecodeRows);
  return policy.kind == SplitKind::kHeuristic && group * detail::mean_tokens(problem) > most;
}

// Rows of partial results that a plan has memory for: those of neither a batch nor lengths, unless
// a caller bounds the splits.
inline std::int64_t room_for(const Problem& problem,
                             const DeviceLimits& device,
                             const SplitPolicy& policy) {
  const std::int64_t room = std::int64_t{kRoomRows} * device.sm_count;
  const std::int64_t rows = std::int64_t{problem.token_num} * problem.num_heads;
  return policy.max_split_k > 0 ? std::min(room, policy.max_split_k * rows) : room;
}

// As many splits as have room, at least 1.
inline int splits_within(const Problem& problem, std::int64_t room) {
  const std::int64_t rows = std::int64_t{problem.token_num} * problem.num_heads;
  return static_cast<int>(detail::bounded(room / std::max<std::int64_t>(rows, 1), detail::kMaxInt));
}

// Of the tiles of a prefill kernel the one of least rank takes a decode call of many rows; kUnfit:
// none does.
//
// A tile must have room for all heads of a group, so that K and V are read once. Ranks have all
// keys: a part is what a decode kernel leaves.
inline std::int64_t rank_many_rows(const Problem& problem,
                                   const DeviceLimits& device,
                                   const KernelLimits& kernel,
                                   const SplitPolicy& policy) {
  const PackedCall packed = pack_heads(problem, kernel, policy);
  if (packed.problem.num_heads != problem.num_kv_heads || problem.cp_size != 1) {
    return detail::kUnfit;
  }
  const int splits = splits_within(problem, room_for(problem, device, policy));
  return rank(problem, device, kernel, {SplitKind::kHeuristic, 0, splits});
}

// The plan of a prefill kernel that takes a decode call, with memory for so many rows of partial
// results, and for its plan of a decode kernel: a caller need not know who computes.
inline Plan with_memory(const Problem& problem, const Plan& decode, std::int64_t room, Plan plan) {
  const std::int64_t row_bytes = std::int64_t{4} * problem.head_dim_v;
  const std::int64_t rows = std::max(room, decode.partial_O_bytes / row_bytes);
  plan.partial_O_bytes = rows * row_bytes;
  plan.partial_ML_offset = detail::align_bytes(plan.partial_O_bytes);
  plan.workspace_bytes = plan.partial_ML_offset + rows * 8;
  plan.ranges = decode.ranges;
  plan.counter_cnt = std::max(decode.counter_cnt, plan.counter_cnt);
  return plan;
}

}  // namespace attn
