// SPDX-License-Identifier: Apache-2.0
// Where the K and V rows of a token are, for each kind of cache.
#pragma once

#include "attn/block_splitter.cuh"
#include "attn/kv_type.h"
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

// Strides that are near, in bytes: a product with a row is then one instruction.
struct alignas(8) RowSteps {
  uint32_t k;
  uint32_t v;
};

struct alignas(16) BlockSteps {
  RowSteps block;  // from block to block
  RowSteps row;
};

// Whether all strides are near: below 2^31 elements, and so below 2^32 bytes.
template <class... Strides>
__device__ __forceinline__ bool all_near(Strides... strides) {
  return static_cast<uint64_t>((strides | ...)) >> 31 == 0;
}

// Bytes that an even number of elements of a cache take.
template <class Kv>
__device__ __forceinline__ int64_t bytes_of(int64_t elements) {
  return Kv::kBits >= 8 ? elements * (Kv::kBits / 8) : elements >> 1;
}

// The same of a stride that is near.
template <class Kv>
__device__ __forceinline__ uint32_t near_bytes_of(int64_t elements) {
  const uint32_t low = static_cast<uint32_t>(elements);
  return Kv::kBits >= 8 ? low * (Kv::kBits / 8) : low >> 1;
}

// The rows of one sequence and one KV head. Tkv: what the cache holds (attn/kv_type.h). Splitter:
// how tokens are split into blocks (attn/block_splitter.cuh).
//   kGathered   rows have no common stride: a kernel looks them up before it copies, in two steps
//     entry(token)               what the block table says of the token's block: a load. Only for
//                                tokens below k_len: entries behind the last used one may be wild
//     row(params, token, entry)  the row's address: arithmetic
//     entry_of_block(block), row_of_block(params, row, entry)   where block and row of it are known
//     entries()                  all entries of the sequence
//   otherwise   row(params, token)
//   evenly_spaced(n)             n rows from a multiple of n on are stride(params) apart
//   is_near(params)              all strides are near; then also, in fewer instructions,
//     Steps::make(params)          what follows needs of them
//     near_row(steps, row, entry)  row_of_block(params, row, entry)
template <CacheType kCache, class T, int kHeadDim, class Tkv = T, class Splitter = BlockSplitter>
struct CacheIterator;

// Row of a linear cache that holds the first key of a sequence.
template <class T>
__device__ __forceinline__ int first_linear_row(const AttentionParams<T>& params, int sequence) {
  const int* const rows = params.linear_iter_params.cu_rows;
  return rows == nullptr ? params.cu_k_len[sequence] : rows[sequence];
}

template <class T, int kHeadDim, class Tkv, class Splitter>
struct CacheIterator<CacheType::kLinear, T, kHeadDim, Tkv, Splitter> {
  static constexpr bool kGathered = false;
  using Kv = KvTraits<T, Tkv>;
  struct Entry {};

  const char* k;  // first row
  const char* v;

  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    return from(params, first_linear_row(params, sequence), kv_head);
  }

  // The same by the row of its first key.
  __device__ __forceinline__ static CacheIterator from(const AttentionParams<T>& params,
                                                       int64_t first,
                                                       int kv_head) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {static_cast<const char*>(linear.k) +
                bytes_of<Kv>(first * linear.k_token_stride + kv_head * linear.k_head_stride),
            static_cast<const char*>(linear.v) +
                bytes_of<Kv>(first * linear.v_token_stride + kv_head * linear.v_head_stride)};
  }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params, int token) const {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {k + bytes_of<Kv>(token * linear.k_token_stride),
            v + bytes_of<Kv>(token * linear.v_token_stride)};
  }

  __device__ __forceinline__ bool evenly_spaced(int) const { return true; }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>& params) const {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {bytes_of<Kv>(linear.k_token_stride), bytes_of<Kv>(linear.v_token_stride)};
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>& params) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return all_near(linear.k_token_stride, linear.v_token_stride);
  }

  struct Steps {
    RowSteps row;

    __device__ __forceinline__ static Steps make(const AttentionParams<T>& params) {
      const LinearIteratorParams& linear = params.linear_iter_params;
      return {{near_bytes_of<Kv>(linear.k_token_stride), near_bytes_of<Kv>(linear.v_token_stride)}};
    }
  };

  __device__ __forceinline__ RowAddress near_row(const Steps& steps, uint64_t row, Entry) const {
    return {k + row * steps.row.k, v + row * steps.row.v};
  }
};

template <class T, int kHeadDim, class Tkv, class Splitter>
struct CacheIterator<CacheType::kBlock, T, kHeadDim, Tkv, Splitter> {
  static constexpr bool kGathered = true;
  static constexpr int kRowBytes = KvTraits<T, Tkv>::template kRowBytes<kHeadDim>;
  using Entry = int64_t;  // address of a block

  const int64_t* block_ptrs;  // of this sequence
  int64_t head_offset;        // bytes from a block's address to the K rows of this layer and head
  Splitter splitter;

  // A block: [kv_head][K, V][token][head_dim]
  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const BlockIteratorParams& block = params.block_iter_params;
    return {block.block_ptrs + block.cu_block_nums[sequence],
            block.layer_offset + static_cast<int64_t>(kv_head) * 2 * block.block_len * kRowBytes,
            Splitter::make(block.block_len)};
  }

  __device__ __forceinline__ const Entry* entries() const { return block_ptrs; }

  __device__ __forceinline__ Entry entry(int token) const {
    return entry_of_block(splitter.block(token));
  }

  __device__ __forceinline__ Entry entry_of_block(int block) const { return block_ptrs[block]; }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params,
                                            int token,
                                            Entry block) const {
    return row_of_block(params, splitter.row(token), block);
  }

  __device__ __forceinline__ RowAddress row_of_block(const AttentionParams<T>&,
                                                     unsigned row,
                                                     Entry block) const {
    return row_of_block(row, block);
  }

  __device__ __forceinline__ RowAddress row_of_block(unsigned row, Entry block) const {
    const char* const k =
        reinterpret_cast<const char*>(block) + head_offset + static_cast<int64_t>(row) * kRowBytes;
    return {k, k + static_cast<int64_t>(splitter.block_len) * kRowBytes};
  }

  __device__ __forceinline__ bool evenly_spaced(int rows) const {
    return splitter.block_len % rows == 0;
  }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>&) const {
    return {kRowBytes, kRowBytes};
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>&) { return true; }

  struct Steps {
    static constexpr RowSteps row{kRowBytes, kRowBytes};

    __device__ __forceinline__ static Steps make(const AttentionParams<T>&) { return {}; }
  };

  __device__ __forceinline__ RowAddress near_row(const Steps&, unsigned row, Entry block) const {
    return row_of_block(row, block);
  }
};

template <class T, int kHeadDim, class Tkv, class Splitter>
struct CacheIterator<CacheType::kPaged, T, kHeadDim, Tkv, Splitter> {
  static constexpr bool kGathered = true;
  using Kv = KvTraits<T, Tkv>;
  using Entry = int;  // block id

  const char* k;  // of this KV head
  const char* v;
  const int* block_table;  // of this sequence
  Splitter splitter;

  __device__ __forceinline__ static CacheIterator make(const AttentionParams<T>& params,
                                                       int sequence,
                                                       int kv_head) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {static_cast<const char*>(paged.k) + bytes_of<Kv>(kv_head * paged.k_head_stride),
            static_cast<const char*>(paged.v) + bytes_of<Kv>(kv_head * paged.v_head_stride),
            paged.block_table + static_cast<int64_t>(sequence) * paged.max_blocks,
            Splitter::make(paged.block_len)};
  }

  __device__ __forceinline__ const Entry* entries() const { return block_table; }

  __device__ __forceinline__ Entry entry(int token) const {
    return entry_of_block(splitter.block(token));
  }

  __device__ __forceinline__ Entry entry_of_block(int block) const { return block_table[block]; }

  __device__ __forceinline__ RowAddress row(const AttentionParams<T>& params,
                                            int token,
                                            Entry id) const {
    return row_of_block(params, splitter.row(token), id);
  }

  __device__ __forceinline__ RowAddress row_of_block(const AttentionParams<T>& params,
                                                     unsigned row,
                                                     Entry id) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int64_t block = static_cast<unsigned>(id);
    const int64_t in_block = row;
    return {k + bytes_of<Kv>(block * paged.k_block_stride + in_block * paged.k_token_stride),
            v + bytes_of<Kv>(block * paged.v_block_stride + in_block * paged.v_token_stride)};
  }

  __device__ __forceinline__ bool evenly_spaced(int rows) const {
    return splitter.block_len % rows == 0;
  }

  __device__ __forceinline__ RowStride stride(const AttentionParams<T>& params) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {bytes_of<Kv>(paged.k_token_stride), bytes_of<Kv>(paged.v_token_stride)};
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>& params) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return all_near(
        paged.k_block_stride, paged.v_block_stride, paged.k_token_stride, paged.v_token_stride);
  }

  struct Steps : BlockSteps {
    __device__ __forceinline__ static Steps make(const AttentionParams<T>& params) {
      const PagedIteratorParams& paged = params.paged_iter_params;
      return {{{near_bytes_of<Kv>(paged.k_block_stride), near_bytes_of<Kv>(paged.v_block_stride)},
               {near_bytes_of<Kv>(paged.k_token_stride), near_bytes_of<Kv>(paged.v_token_stride)}}};
    }
  };

  __device__ __forceinline__ RowAddress near_row(const Steps& steps, uint64_t row, Entry id) const {
    const uint64_t block = static_cast<unsigned>(id);
    return {k + block * steps.block.k + row * steps.row.k,
            v + block * steps.block.v + row * steps.row.v};
  }
};

}  // namespace attn
