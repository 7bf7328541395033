// SPDX-License-Identifier: Apache-2.0
// Refuses parameters that a kernel cannot run with, before anything is launched.
#pragma once

#include <cstdint>
#include <string>

#include "attn/error.h"
#include "attn/kv_type.h"
#include "attn/params.h"
#include "attn/plan.h"

namespace attn::detail {

[[noreturn]] inline void refuse_field(const char* field,
                                      const std::string& what,
                                      Status code = Status::kInvalidArgument) {
  throw Error(code, field, std::string(field) + " " + what);
}

inline void need_pointer(const char* field, const void* pointer) {
  if (pointer == nullptr) {
    refuse_field(field, "is null: give a device address");
  }
}

inline void need_multiple_of(const char* field,
                             const void* pointer,
                             unsigned bytes,
                             const char* why) {
  need_pointer(field, pointer);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % bytes != 0) {
    refuse_field(field,
                 "is address " + std::to_string(address) + ": it must be a multiple of " +
                     std::to_string(bytes) + ", since " + why);
  }
}

inline void need_aligned(const char* field, const void* pointer) {
  need_multiple_of(field, pointer, 16, "kernels read and write 16 bytes at a time");
}

// So many elements are 16 bytes.
template <class Kv>
inline constexpr int kElementsOf16Bytes = 128 / Kv::kBits;

inline void need_stride(const char* field, std::int64_t stride, int multiple = 8) {
  if (stride % multiple != 0) {
    refuse_field(field,
                 "is " + std::to_string(stride) + " elements: it must be a multiple of " +
                     std::to_string(multiple) + ", so that every row is aligned to 16 bytes");
  }
}

inline void need_pairs(const char* field, const void* pairs) {
  need_multiple_of(field, pairs, 4, "a (scale, zero) pair is read by one load of 4 bytes");
}

inline void need_pair_stride(const char* field, std::int64_t stride) {
  if (stride % 2 != 0) {
    refuse_field(field,
                 "is " + std::to_string(stride) +
                     " elements: it must be even, so that every pair is aligned to 4 bytes");
  }
}

inline void need_positive(const char* field, std::int64_t value) {
  if (value <= 0) {
    refuse_field(field, "is " + std::to_string(value) + ": it must be above 0");
  }
}

inline void need_equal(const char* field, int got, int expected) {
  if (got != expected) {
    refuse_field(field,
                 "is " + std::to_string(got) + ", but this kernel was compiled for " +
                     std::to_string(expected) + ": take the kernel of your head size");
  }
}

// As configuration names have it.
inline std::string word_of(KvType kv_type) {
  switch (kv_type) {
    case KvType::kSame:
      return "same";
    case KvType::kInt8:
      return "int8";
    case KvType::kInt4:
      return "int4";
    case KvType::kE4m3:
      return "e4m3";
  }
  return std::to_string(static_cast<int>(kv_type));
}

template <class Config>
void check_widths(const AttentionParams<typename Config::T>& params) {
  need_equal("size_per_head", params.size_per_head, Config::kHeadDim);
  const bool is_given = params.size_per_head_v != 0;
  need_equal("size_per_head_v",
             is_given ? params.size_per_head_v : params.size_per_head,
             Config::kHeadDimV);
}

template <class Kv>
void check_cache(const LinearIteratorParams& linear) {
  constexpr int kMultiple = kElementsOf16Bytes<Kv>;
  need_aligned("linear_iter_params.k", linear.k);
  need_aligned("linear_iter_params.v", linear.v);
  need_stride("linear_iter_params.k_token_stride", linear.k_token_stride, kMultiple);
  need_stride("linear_iter_params.k_head_stride", linear.k_head_stride, kMultiple);
  need_stride("linear_iter_params.v_token_stride", linear.v_token_stride, kMultiple);
  need_stride("linear_iter_params.v_head_stride", linear.v_head_stride, kMultiple);
  if constexpr (Kv::kHasPairs) {
    need_pairs("linear_iter_params.k_pairs", linear.k_pairs);
    need_pairs("linear_iter_params.v_pairs", linear.v_pairs);
    need_pair_stride("linear_iter_params.k_pair_token_stride", linear.k_pair_token_stride);
    need_pair_stride("linear_iter_params.k_pair_head_stride", linear.k_pair_head_stride);
    need_pair_stride("linear_iter_params.v_pair_token_stride", linear.v_pair_token_stride);
    need_pair_stride("linear_iter_params.v_pair_head_stride", linear.v_pair_head_stride);
  }
}

template <class Kv>
void check_cache(const BlockIteratorParams& block) {
  need_pointer("block_iter_params.block_ptrs", block.block_ptrs);
  need_pointer("block_iter_params.cu_block_nums", block.cu_block_nums);
  need_positive("block_iter_params.block_len", block.block_len);
  if (block.layer_offset % 16 != 0) {
    refuse_field(
        "block_iter_params.layer_offset",
        "is " + std::to_string(block.layer_offset) + " bytes: it must be a multiple of 16");
  }
}

template <class Kv>
void check_cache(const PagedIteratorParams& paged) {
  constexpr int kMultiple = kElementsOf16Bytes<Kv>;
  need_aligned("paged_iter_params.k", paged.k);
  need_aligned("paged_iter_params.v", paged.v);
  need_stride("paged_iter_params.k_block_stride", paged.k_block_stride, kMultiple);
  need_stride("paged_iter_params.k_token_stride", paged.k_token_stride, kMultiple);
  need_stride("paged_iter_params.k_head_stride", paged.k_head_stride, kMultiple);
  need_stride("paged_iter_params.v_block_stride", paged.v_block_stride, kMultiple);
  need_stride("paged_iter_params.v_token_stride", paged.v_token_stride, kMultiple);
  need_stride("paged_iter_params.v_head_stride", paged.v_head_stride, kMultiple);
  need_pointer("paged_iter_params.block_table", paged.block_table);
  need_positive("paged_iter_params.block_len", paged.block_len);
  need_positive("paged_iter_params.max_blocks", paged.max_blocks);
  if constexpr (Kv::kHasPairs) {
    need_pairs("paged_iter_params.k_pairs", paged.k_pairs);
    need_pairs("paged_iter_params.v_pairs", paged.v_pairs);
    need_pair_stride("paged_iter_params.k_pair_block_stride", paged.k_pair_block_stride);
    need_pair_stride("paged_iter_params.k_pair_token_stride", paged.k_pair_token_stride);
    need_pair_stride("paged_iter_params.k_pair_head_stride", paged.k_pair_head_stride);
    need_pair_stride("paged_iter_params.v_pair_block_stride", paged.v_pair_block_stride);
    need_pair_stride("paged_iter_params.v_pair_token_stride", paged.v_pair_token_stride);
    need_pair_stride("paged_iter_params.v_pair_head_stride", paged.v_pair_head_stride);
  }
}

// The cache of a kernel, and that it holds what the kernel reads or writes.
template <class Config>
void check_cache_of(const AttentionParams<typename Config::T>& params) {
  using Kv = KvTraits<typename Config::T, typename Config::Tkv>;
  if (params.kv_type != Kv::kType) {
    refuse_field("kv_type",
                 "is " + word_of(params.kv_type) + ", but this kernel was compiled for " +
                     word_of(Kv::kType) + ": take the kernel of your cache's elements");
  }
  if (params.kv_scale_stride != 0 && params.kv_scale_stride != 1) {
    refuse_field("kv_scale_stride",
                 "is " + std::to_string(params.kv_scale_stride) +
                     ": it is 0 for one scale, and 1 for one of each KV head");
  }
  if (params.max_k_len <= 0) {
    return;
  }
  if constexpr (Config::kCache == CacheType::kLinear) {
    check_cache<Kv>(params.linear_iter_params);
  } else if constexpr (Config::kCache == CacheType::kBlock) {
    check_cache<Kv>(params.block_iter_params);
  } else {
    check_cache<Kv>(params.paged_iter_params);
  }
}

// What the planner is asked, of a call of one kernel.
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

inline void need_word(const char* field, int value, int last) {
  if (value < 0 || value > last) {
    refuse_field(
        field,
        "is " + std::to_string(value) + ": it must be an enumerator, 0 to " + std::to_string(last));
  }
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
  need_stride("k_stride", params.k_stride);
  need_stride("v_stride", params.v_stride);
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
  need_stride("stride", params.stride);
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
