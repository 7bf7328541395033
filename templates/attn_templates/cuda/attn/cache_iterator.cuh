// SPDX-License-Identifier: Apache-2.0
// Where the K and V rows of a token are, for each kind of cache.
#pragma once

#include "attn/params.h"

namespace attn {

// Addresses of the K row and of the V row of one token and one KV head.
struct alignas(16) RowAddress {
  const char* k;
  const char* v;
};

// The rows of one sequence and one KV head.
//   kGathered   rows have no common stride: a kernel looks them up ahead of the copies, in two steps
//     entry(params, token)       what the block table says of the token's block: a load. Only for
//                                tokens below k_len: entries behind the last used one may be wild
//     row(params, token, entry)  the row's address: arithmetic
//   otherwise   row(params, token)
template <CacheType kCache, class T, int kHeadDim>
struct CacheIterator;

template <class T, int kHeadDim>
struct CacheIterator<CacheType::kLinear, T, kHeadDim> {
  static constexpr bool kGathered = false;
  struct Entry {};

  const T* k;  // first row
  const T* v;

  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    const int64_t first = params.cu_k_len[sequence];
    return {static_cast<const T*>(linear.k) + first * linear.k_token_stride +
                kv_head * linear.k_head_stride,
            static_cast<const T*>(linear.v) + first * linear.v_token_stride +
                kv_head * linear.v_head_stride};
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params, int token) const {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {reinterpret_cast<const char*>(k + token * linear.k_token_stride),
            reinterpret_cast<const char*>(v + token * linear.v_token_stride)};
  }
};

template <class T, int kHeadDim>
struct CacheIterator<CacheType::kBlock, T, kHeadDim> {
  static constexpr bool kGathered = true;
  static constexpr int kRowBytes = kHeadDim * sizeof(T);
  using Entry = int64_t;  // address of a block

  const int64_t* block_ptrs;  // of this sequence
  int64_t head_offset;        // bytes from a block's address to the K rows of this layer and head

  // A block: [kv_head][K, V][token][head_dim]
  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const BlockIteratorParams& block = params.block_iter_params;
    return {block.block_ptrs + block.cu_block_nums[sequence],
            block.layer_offset + static_cast<int64_t>(kv_head) * 2 * block.block_len * kRowBytes};
  }

  __device__ __forceinline__ Entry entry(const AttentionParams<T>& params, int token) const {
    return block_ptrs[token / params.block_iter_params.block_len];
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params,
                                            int token,
                                            Entry block) const {
    const int block_len = params.block_iter_params.block_len;
    const char* const k = reinterpret_cast<const char*>(block) + head_offset +
                          static_cast<int64_t>(token % block_len) * kRowBytes;
    return {k, k + static_cast<int64_t>(block_len) * kRowBytes};
  }
};

template <class T, int kHeadDim>
struct CacheIterator<CacheType::kPaged, T, kHeadDim> {
  static constexpr bool kGathered = true;
  using Entry = int;  // block id

  const T* k;  // of this KV head
  const T* v;
  const int* block_table;  // of this sequence

  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {static_cast<const T*>(paged.k) + kv_head * paged.k_head_stride,
            static_cast<const T*>(paged.v) + kv_head * paged.v_head_stride,
            paged.block_table + static_cast<int64_t>(sequence) * paged.max_blocks};
  }

  __device__ __forceinline__ Entry entry(const AttentionParams<T>& params, int token) const {
    return block_table[token / params.paged_iter_params.block_len];
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params,
                                            int token,
                                            Entry id) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int64_t block = id;
    const int64_t in_block = token % paged.block_len;
    return {reinterpret_cast<const char*>(k + block * paged.k_block_stride +
                                          in_block * paged.k_token_stride),
            reinterpret_cast<const char*>(v + block * paged.v_block_stride +
                                          in_block * paged.v_token_stride)};
  }
};

}  // namespace attn
