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

// Bytes from the row of a token to that of the next one, where both lie in one block.
struct RowStride {
  int64_t k;
  int64_t v;
};

// Splits a token index into block and row. Nearly every cache has a power of two as block_len; a
// shift then spares each tile two divisions, whose latency no other warp hides (measured: 12 % of a
// prefill at head_dim 128).
struct BlockSplitter {
  int block_len;
  int shift;  // log2(block_len), or -1

  __device__ __forceinline__ static BlockSplitter make(int block_len) {
    return {block_len, (block_len & (block_len - 1)) == 0 ? __ffs(block_len) - 1 : -1};
  }

  __device__ __forceinline__ int block(int token) const {
    return shift >= 0 ? token >> shift : token / block_len;
  }

  __device__ __forceinline__ int row(int token) const {
    return shift >= 0 ? token & (block_len - 1) : token % block_len;
  }
};

// The rows of one sequence and one KV head.
//   kGathered   rows have no common stride: a kernel looks them up before it copies, in two steps
//     entry(token)               what the block table says of the token's block: a load. Only for
//                                tokens below k_len: entries behind the last used one may be wild
//     row(params, token, entry)  the row's address: arithmetic
//   otherwise   row(params, token)
//   evenly_spaced(n)             n rows from a multiple of n on are stride(params) apart
template <CacheType kCache, class T, int kHeadDim>
struct CacheIterator;

// Row of a linear cache that holds the first key of a sequence.
template <class T>
__device__ __forceinline__ int first_linear_row(const AttentionParams<T>& params, int sequence) {
  const int* const rows = params.linear_iter_params.cu_rows;
  return rows == nullptr ? params.cu_k_len[sequence] : rows[sequence];
}

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
    const int64_t first = first_linear_row(params, sequence);
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

  __device__ __forceinline__ bool evenly_spaced(int) const { return true; }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>& params) const {
    const LinearIteratorParams& linear = params.linear_iter_params;
    constexpr int64_t kBytes = sizeof(T);
    return {linear.k_token_stride * kBytes, linear.v_token_stride * kBytes};
  }
};

template <class T, int kHeadDim>
struct CacheIterator<CacheType::kBlock, T, kHeadDim> {
  static constexpr bool kGathered = true;
  static constexpr int kRowBytes = kHeadDim * sizeof(T);
  using Entry = int64_t;  // address of a block

  const int64_t* block_ptrs;  // of this sequence
  int64_t head_offset;        // bytes from a block's address to the K rows of this layer and head
  BlockSplitter splitter;

  // A block: [kv_head][K, V][token][head_dim]
  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const BlockIteratorParams& block = params.block_iter_params;
    return {block.block_ptrs + block.cu_block_nums[sequence],
            block.layer_offset + static_cast<int64_t>(kv_head) * 2 * block.block_len * kRowBytes,
            BlockSplitter::make(block.block_len)};
  }

  __device__ __forceinline__ Entry entry(int token) const {
    return block_ptrs[splitter.block(token)];
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>&,
                                            int token,
                                            Entry block) const {
    const char* const k = reinterpret_cast<const char*>(block) + head_offset +
                          static_cast<int64_t>(splitter.row(token)) * kRowBytes;
    return {k, k + static_cast<int64_t>(splitter.block_len) * kRowBytes};
  }

  __device__ __forceinline__ bool evenly_spaced(int rows) const {
    return splitter.block_len % rows == 0;
  }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>&) const {
    return {kRowBytes, kRowBytes};
  }
};

template <class T, int kHeadDim>
struct CacheIterator<CacheType::kPaged, T, kHeadDim> {
  static constexpr bool kGathered = true;
  using Entry = int;  // block id

  const T* k;  // of this KV head
  const T* v;
  const int* block_table;  // of this sequence
  BlockSplitter splitter;

  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {static_cast<const T*>(paged.k) + kv_head * paged.k_head_stride,
            static_cast<const T*>(paged.v) + kv_head * paged.v_head_stride,
            paged.block_table + static_cast<int64_t>(sequence) * paged.max_blocks,
            BlockSplitter::make(paged.block_len)};
  }

  __device__ __forceinline__ Entry entry(int token) const {
    return block_table[splitter.block(token)];
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params,
                                            int token,
                                            Entry id) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int64_t block = id;
    const int64_t in_block = splitter.row(token);
    return {reinterpret_cast<const char*>(k + block * paged.k_block_stride +
                                          in_block * paged.k_token_stride),
            reinterpret_cast<const char*>(v + block * paged.v_block_stride +
                                          in_block * paged.v_token_stride)};
  }

  __device__ __forceinline__ bool evenly_spaced(int rows) const {
    return splitter.block_len % rows == 0;
  }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>& params) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    constexpr int64_t kBytes = sizeof(T);
    return {paged.k_token_stride * kBytes, paged.v_token_stride * kBytes};
  }
};

}  // namespace attn
