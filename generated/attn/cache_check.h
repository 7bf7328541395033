// SPDX-License-Identifier: Apache-2.0
// Refuses a cache that a kernel cannot read or write.
#pragma once

#include <string>

#include "attn/config.h"
#include "attn/kv_type.h"
#include "attn/need.h"
#include "attn/params.h"

namespace attn::detail {

// So many elements are 16 bytes.
template <class Kv>
inline constexpr int kElementsOf16Bytes = 128 / Kv::kBits;

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

template <class Kv>
void check_cache(const LinearIteratorParams& linear) {
  constexpr int kMultiple = kElementsOf16Bytes<Kv>;
  need_aligned("linear_iter_params.k", linear.k);
  need_aligned("linear_iter_params.v", linear.v);
  need_token_stride(
      "linear_iter_params.k_token_stride", linear.k_token_stride, linear.token_count, kMultiple);
  need_stride("linear_iter_params.k_head_stride", linear.k_head_stride, kMultiple);
  need_token_stride(
      "linear_iter_params.v_token_stride", linear.v_token_stride, linear.token_count, kMultiple);
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
  need_token_stride(
      "paged_iter_params.k_token_stride", paged.k_token_stride, paged.block_len, kMultiple);
  need_stride("paged_iter_params.k_head_stride", paged.k_head_stride, kMultiple);
  need_stride("paged_iter_params.v_block_stride", paged.v_block_stride, kMultiple);
  need_token_stride(
      "paged_iter_params.v_token_stride", paged.v_token_stride, paged.block_len, kMultiple);
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
  if (Config::kMode != Mode::kWrite && params.max_k_len <= 0) {
    return;  // no key is read; a writer is told no bound
  }
  if constexpr (Config::kCache == CacheType::kLinear) {
    check_cache<Kv>(params.linear_iter_params);
  } else if constexpr (Config::kCache == CacheType::kBlock) {
    check_cache<Kv>(params.block_iter_params);
  } else {
    check_cache<Kv>(params.paged_iter_params);
  }
}

}  // namespace attn::detail
