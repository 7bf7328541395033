// SPDX-License-Identifier: Apache-2.0
// Refuses the params of a call that a kernel cannot run with, before anything is launched.
#pragma once

#include <cstdint>
#include <string>

#include "attn/cache_check.h"
#include "attn/call_problem.h"
#include "attn/error.h"
#include "attn/need.h"
#include "attn/params.h"
#include "attn/plan.h"

namespace attn::detail {

template <class Config>
void check_widths(const AttentionParams<typename Config::T>& params) {
  need_equal("size_per_head", params.size_per_head, Config::kHeadDim);
  const bool is_given = params.size_per_head_v != 0;
  need_equal("size_per_head_v",
             is_given ? params.size_per_head_v : params.size_per_head,
             Config::kHeadDimV);
}

// Which keys a rank has, and where they lie.
template <class Config>
void check_shard(const AttentionParams<typename Config::T>& params) {
  check_ranks(params.cp_rank, params.cp_size, params.cp_chunk);
  need_word("cp_sharding", static_cast<int>(params.cp_sharding), 2);
  if (params.cp_size > 1 && Config::kCache == CacheType::kLinear && params.batch_size > 1 &&
      params.linear_iter_params.cu_rows == nullptr) {
    refuse_field("linear_iter_params.cu_rows",
                 "is null, but cu_k_len counts keys of all " + std::to_string(params.cp_size) +
                     " ranks: give the first row of each sequence in this rank's K and V");
  }
}

template <class Config>
void check_context_parallel(const AttentionParams<typename Config::T>& params) {
  check_shard<Config>(params);
  need_word("cp_form", static_cast<int>(params.cp_form), 2);
  if (params.cp_size <= 1) {
    if (params.cp_out_stride != 0) {
      refuse_field("cp_out_stride",
                   "is " + std::to_string(params.cp_out_stride) +
                       ", but only the merge of many ranks writes apart tokens: set it to 0");
    }
    return;
  }
  const std::int64_t width = std::int64_t{params.num_heads} * Config::kHeadDimV;
  if (params.cp_out_stride != 0 && params.cp_out_stride < width) {
    refuse_field("cp_out_stride",
                 "is " + std::to_string(params.cp_out_stride) + ": the heads of a token take " +
                     std::to_string(width) + " elements; 0 lays tokens back to back");
  }
  if (params.cp_fn == nullptr && params.cp_form != CpForm::kPartOnly) {
    refuse_field("cp_fn",
                 "is null, but keys are spread over " + std::to_string(params.cp_size) +
                     " ranks: give a function that gathers their parts, or set cp_form to "
                     "kPartOnly");
  }
}

// New rows of K and V, which a writer puts into the cache.
template <class T>
void check_new_rows(const AttentionParams<T>& params) {
  need_aligned("k", params.k);
  need_aligned("v", params.v);
  need_token_stride("k_stride", params.k_stride, params.token_num);
  need_token_stride("v_stride", params.v_stride, params.token_num);
}

// Those that a decode call brings along, if it does.
template <class T>
void check_appended_rows(const AttentionParams<T>& params) {
  if (params.k == nullptr && params.v == nullptr) {
    return;
  }
  check_new_rows(params);
  if (params.cp_size != 1) {
    refuse_field("cp_size",
                 "is " + std::to_string(params.cp_size) +
                     " with new rows of K and V: let a cache writer write those of each rank, and "
                     "leave k and v null",
                 Status::kNotSupported);
  }
  if (params.offset_q != nullptr) {
    refuse_field("offset_q",
                 "is given with new rows of K and V, which are the last keys of a sequence, as are "
                 "their queries: leave it null, or k and v",
                 Status::kNotSupported);
  }
}

// Where the keys are spread over ranks, a call leaves its part whether it is split or not.
template <class T>
void check_parts(const AttentionParams<T>& params, const Plan& plan) {
  if (params.cp_size == 1) {
    return;
  }
  if (params.cp_O == nullptr || params.cp_ML == nullptr) {
    throw Error(Status::kWorkspaceTooSmall,
                "cp_O",
                "cp_O or cp_ML is null, but keys are spread over " +
                    std::to_string(params.cp_size) + " ranks: give a workspace of " +
                    std::to_string(plan.workspace_bytes) + " bytes (set_workspace)");
  }
  if (params.cp_stride < plan.cp_stride || params.cp_stride % 2 != 0) {
    refuse_field("cp_stride",
                 "is " + std::to_string(params.cp_stride) + ": a part takes " +
                     std::to_string(plan.cp_stride) + " floats, and starts at an even one");
  }
}

// Everything that can be known without a device.
template <class Config>
void check_params(const AttentionParams<typename Config::T>& params) {
  need_aligned("out", params.out);
  need_aligned("q", params.q);
  need_token_stride("stride", params.stride, params.token_num);
  need_pointer("cu_q_len", params.cu_q_len);
  need_pointer("cu_k_len", params.cu_k_len);
  check_widths<Config>(params);
  if (!(params.inv_sqrt_dh > 0.0f) || params.inv_sqrt_dh > 3.4e38f) {
    refuse_field(
        "inv_sqrt_dh",
        "is " + std::to_string(params.inv_sqrt_dh) +
            ": the softmax scale must be finite and above 0, usually 1 / sqrt(size_per_head)");
  }
  check_context_parallel<Config>(params);
  if (Config::kMode != Mode::kDecode && params.sinks != nullptr) {
    refuse_field("sinks",
                 "is given, but only decode kernels add sinks: leave it null",
                 Status::kNotSupported);
  }
  if (Config::kMode == Mode::kDecode) {
    check_appended_rows(params);
  }
  check_cache_of<Config>(params);
  check(problem_of<Config>(params));
  split_policy(params.max_split_k, params.split_cnt, params.split_size);
}

}  // namespace attn::detail
