// SPDX-License-Identifier: Apache-2.0
// What the planner is asked of a call.
#pragma once

#include "attn/config.h"
#include "attn/params.h"
#include "attn/problem.h"

namespace attn::detail {

// Of a call of one kernel.
template <class Config>
Problem problem_of(const AttentionParams<typename Config::T>& params) {
  Problem problem;
  problem.token_num = params.token_num;
  problem.batch_size = params.batch_size;
  problem.max_q_len = params.max_q_len;
  problem.max_k_len = params.max_k_len;
  problem.num_heads = params.num_heads;
  problem.num_kv_heads = params.num_kv_heads;
  problem.head_dim_v = Config::kHeadDimV;
  problem.window_size = params.window_size;
  problem.causal = Config::kMask == Mask::kCausal;
  problem.cp_rank = params.cp_rank;
  problem.cp_size = params.cp_size;
  problem.cp_sharding = params.cp_sharding;
  problem.cp_chunk = params.cp_chunk;
  problem.cp_form = params.cp_form;
  using Kv = KvTraits<typename Config::T, typename Config::Tkv>;
  problem.key_bytes =
      Kv::template kRowBytes<Config::kHeadDim> + Kv::template kRowBytes<Config::kHeadDimV>;
  return problem;
}

// The bound of splits that a launch plans with: without a workspace the planner's own choice is not
// to split.
template <class T>
int launched_splits(const AttentionParams<T>& params) {
  const bool has_workspace = params.partial_O != nullptr && params.partial_ML != nullptr;
  const bool is_asked = params.split_cnt != 0 || params.split_size != 0;
  return has_workspace || is_asked ? params.max_split_k : 1;
}

}  // namespace attn::detail
