// SPDX-License-Identifier: Apache-2.0
// What is asked of a planner, and how keys are to be split; what is out of range is refused.
// attn_runtime/problem.py is the twin: same names, integers and messages.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "attn/cost.h"
#include "attn/error.h"
#include "attn/limits.h"
#include "attn/params.h"

namespace attn {

// What is asked. Lengths are upper bounds: a larger one gives the same result.
struct Problem {
  int token_num = 0;
  int batch_size = 0;
  int max_q_len = 0;
  int max_k_len = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim_v = 0;
  int window_size = 0;  // 0: none
  bool causal = true;
  int cp_rank = 0;
  int cp_size = 1;  // ranks that the keys of each sequence are spread over
  KeySharding cp_sharding = KeySharding::kInterleaved;
  int cp_chunk = 1;  // kInterleaved: consecutive keys that go to one rank
  CpForm cp_form = CpForm::kScaled;
  int key_bytes = 0;  // of K and V of a token and KV head; 0: they do not matter
};

enum class SplitKind : int { kHeuristic = 0, kFixed = 1, kFixedSize = 2, kOff = 3 };

// How the keys of a query tile are split.
struct SplitPolicy {
  SplitKind kind = SplitKind::kHeuristic;
  int value = 0;        // kFixed: splits; kFixedSize: keys of a split
  int max_split_k = 0;  // splits that the workspace holds; 0: no bound
};

namespace detail {

inline constexpr std::int64_t kMaxKeys = std::numeric_limits<int>::max();

[[noreturn]] inline void refuse(const char* field, const std::string& message) {
  throw Error(Status::kInvalidArgument, field, message);
}

inline void need_at_least(const char* field, std::int64_t value, std::int64_t least) {
  if (value < least) {
    refuse(field,
           std::string(field) + " is " + std::to_string(value) + ": it must be at least " +
               std::to_string(least));
  }
}

inline void need_cost(const char* field, std::int64_t value) {
  need_at_least(field, value, 0);
  if (value > kCostMax) {
    refuse(field,
           std::string(field) + " is " + std::to_string(value) + ": it must be at most " +
               std::to_string(kCostMax));
  }
}

inline void check_ranks(int cp_rank, int cp_size, int cp_chunk) {
  need_at_least("cp_size", cp_size, 1);
  need_at_least("cp_rank", cp_rank, 0);
  need_at_least("cp_chunk", cp_chunk, 1);
  if (cp_rank >= cp_size) {
    refuse("cp_rank",
           "cp_rank is " + std::to_string(cp_rank) +
               ": ranks count from 0 to cp_size - 1, which is " + std::to_string(cp_size - 1));
  }
  if (std::int64_t{cp_chunk} * cp_size > kMaxKeys) {
    refuse("cp_chunk",
           "cp_chunk is " + std::to_string(cp_chunk) + ": times cp_size, which is " +
               std::to_string(cp_size) + ", it must stay below 2^31");
  }
}

inline void check(const Problem& problem) {
  need_at_least("token_num", problem.token_num, 0);
  need_at_least("batch_size", problem.batch_size, 0);
  need_at_least("max_q_len", problem.max_q_len, 0);
  need_at_least("max_k_len", problem.max_k_len, 0);
  need_at_least("num_heads", problem.num_heads, 1);
  need_at_least("num_kv_heads", problem.num_kv_heads, 1);
  need_at_least("head_dim_v", problem.head_dim_v, 1);
  need_at_least("window_size", problem.window_size, 0);
  check_ranks(problem.cp_rank, problem.cp_size, problem.cp_chunk);
  if (problem.num_heads % problem.num_kv_heads != 0) {
    refuse("num_kv_heads",
           "num_kv_heads is " + std::to_string(problem.num_kv_heads) +
               ": it must divide num_heads, which is " + std::to_string(problem.num_heads));
  }
}

inline void check(const Problem& problem,
                  const DeviceLimits& device,
                  const KernelLimits& kernel,
                  const SplitPolicy& policy) {
  check(problem);
  need_at_least("sm_count", device.sm_count, 1);
  need_at_least("max_grid_x", device.max_grid_x, 1);
  need_at_least("cta_q", kernel.cta_q, 1);
  need_at_least("cta_s", kernel.cta_s, 1);
  need_at_least("ctas_per_sm", kernel.ctas_per_sm, 1);
  need_cost("tile_ns", kernel.tile_ns);
  need_cost("step_ns", kernel.step_ns);
  need_at_least("packed_heads", kernel.packed_heads, 1);
  if (kernel.cta_q % kernel.packed_heads != 0) {
    refuse("packed_heads",
           "packed_heads is " + std::to_string(kernel.packed_heads) +
               ": it must divide cta_q, which is " + std::to_string(kernel.cta_q));
  }
  need_at_least("max_split_k", policy.max_split_k, 0);
  if (policy.kind == SplitKind::kFixed) {
    need_at_least("split_cnt", policy.value, 1);
  }
  if (policy.kind == SplitKind::kFixedSize) {
    need_at_least("split_size", policy.value, 1);
  }
}

inline void check_grid(std::int64_t ctas,
                       const DeviceLimits& device,
                       const char* field,
                       const char* next) {
  if (ctas > device.max_grid_x) {
    refuse(field,
           std::string(field) + " gives a grid of " + std::to_string(ctas) + " CTAs: at most " +
               std::to_string(device.max_grid_x) + " can be launched; " + next);
  }
}

}  // namespace detail

// The split policy that AttentionParams asks for: a size, a count, never (max_split_k == 1), or the
// planner's choice.
inline SplitPolicy split_policy(int max_split_k, int split_cnt, int split_size) {
  detail::need_at_least("split_cnt", split_cnt, 0);
  detail::need_at_least("split_size", split_size, 0);
  if (split_cnt > 0 && split_size > 0) {
    detail::refuse("split_size",
                   "split_cnt is " + std::to_string(split_cnt) + " and split_size is " +
                       std::to_string(split_size) + ": set one of them, the other is 0");
  }
  if (split_size > 0) {
    return {SplitKind::kFixedSize, split_size, max_split_k};
  }
  if (max_split_k == 1) {
    return {SplitKind::kOff, 0, max_split_k};
  }
  if (split_cnt > 0) {
    return {SplitKind::kFixed, split_cnt, max_split_k};
  }
  return {SplitKind::kHeuristic, 0, max_split_k};
}

}  // namespace attn
