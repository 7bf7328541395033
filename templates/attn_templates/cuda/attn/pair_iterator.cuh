// SPDX-License-Identifier: Apache-2.0
// Where the (scale, zero) pairs of a token's rows are, for each kind of cache. Only caches of Int8
// and Int4 have them.
#pragma once

#include "attn/cache_iterator.cuh"

namespace attn {

// The pairs of one sequence and one KV head, found like its rows: `entry` is the one that
// CacheIterator gives for the token. The two addresses are those of the K row's pair and of the V
// row's, aligned to 4 bytes.
template <CacheType kCache,
          class T,
          int kHeadDim,
          class Tkv,
          bool kHasPairs = KvTraits<T, Tkv>::kHasPairs>
struct PairIterator;

template <CacheType kCache, class T, int kHeadDim, class Tkv>
struct PairIterator<kCache, T, kHeadDim, Tkv, false> {
  __device__ __forceinline__ static PairIterator make(const AttentionParams<T>&, int, int) {
    return {};
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>&) { return true; }
};

template <class T, int kHeadDim, class Tkv>
struct PairIterator<CacheType::kLinear, T, kHeadDim, Tkv, true> {
  const T* k;  // of the first row
  const T* v;

  __device__ __forceinline__ static PairIterator make(const AttentionParams<T>& params,
                                                      int sequence,
                                                      int kv_head) {
    return from(params, first_linear_row(params, sequence), kv_head);
  }

  // The same by the row of its first key.
  __device__ __forceinline__ static PairIterator from(const AttentionParams<T>& params,
                                                      int64_t first,
                                                      int kv_head) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {static_cast<const T*>(linear.k_pairs) + first * linear.k_pair_token_stride +
                kv_head * linear.k_pair_head_stride,
            static_cast<const T*>(linear.v_pairs) + first * linear.v_pair_token_stride +
                kv_head * linear.v_pair_head_stride};
  }

  template <class Entry>
  __device__ __forceinline__ RowAddress pair(const AttentionParams<T>& params,
                                             int token,
                                             Entry) const {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return {reinterpret_cast<const char*>(k + token * linear.k_pair_token_stride),
            reinterpret_cast<const char*>(v + token * linear.v_pair_token_stride)};
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>& params) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    return all_near(linear.k_pair_token_stride, linear.v_pair_token_stride);
  }

  struct Steps {
    RowSteps row;

    __device__ __forceinline__ static Steps make(const AttentionParams<T>& params) {
      const LinearIteratorParams& linear = params.linear_iter_params;
      using Plain = KvTraits<T, T>;
      return {{near_bytes_of<Plain>(linear.k_pair_token_stride),
               near_bytes_of<Plain>(linear.v_pair_token_stride)}};
    }
  };

  template <class Entry>
  __device__ __forceinline__ RowAddress near_pair(const Steps& steps, uint64_t token, Entry) const {
    return {reinterpret_cast<const char*>(k) + token * steps.row.k,
            reinterpret_cast<const char*>(v) + token * steps.row.v};
  }
};

template <class T, int kHeadDim, class Tkv>
struct PairIterator<CacheType::kBlock, T, kHeadDim, Tkv, true> {
  static constexpr int kPairBytes = 2 * sizeof(T);

  int64_t head_offset;  // bytes from a block's address to the pairs of K of this layer and head
  BlockSplitter splitter;

  // A block: [kv_head][K, V][token][head_dim] codes, [kv_head][K, V][token][scale, zero]
  __device__ __forceinline__ static PairIterator make(const AttentionParams<T>& params,
                                                      int,
                                                      int kv_head) {
    constexpr int kRowBytes = KvTraits<T, Tkv>::template kRowBytes<kHeadDim>;
    const BlockIteratorParams& block = params.block_iter_params;
    const int64_t rows_of_head = 2 * static_cast<int64_t>(block.block_len);
    return {block.layer_offset + params.num_kv_heads * rows_of_head * kRowBytes +
                kv_head * rows_of_head * kPairBytes,
            BlockSplitter::make(block.block_len)};
  }

  __device__ __forceinline__ RowAddress pair(const AttentionParams<T>& params,
                                             int token,
                                             int64_t block) const {
    return pair_of_block(params, splitter.row(token), block);
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>&) { return true; }

  struct Steps {
    __device__ __forceinline__ static Steps make(const AttentionParams<T>&) { return {}; }
  };

  __device__ __forceinline__ RowAddress near_pair(const Steps&, unsigned row, int64_t block) const {
    return pair_of_block(row, block);
  }

  __device__ __forceinline__ RowAddress pair_of_block(const AttentionParams<T>&,
                                                      unsigned row,
                                                      int64_t block) const {
    return pair_of_block(row, block);
  }

  __device__ __forceinline__ RowAddress pair_of_block(unsigned row, int64_t block) const {
    const char* const k =
        reinterpret_cast<const char*>(block) + head_offset + static_cast<int64_t>(row) * kPairBytes;
    return {k, k + static_cast<int64_t>(splitter.block_len) * kPairBytes};
  }
};

template <class T, int kHeadDim, class Tkv>
struct PairIterator<CacheType::kPaged, T, kHeadDim, Tkv, true> {
  const T* k;  // of this KV head
  const T* v;
  BlockSplitter splitter;

  __device__ __forceinline__ static PairIterator make(const AttentionParams<T>& params,
                                                      int,
                                                      int kv_head) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {static_cast<const T*>(paged.k_pairs) + kv_head * paged.k_pair_head_stride,
            static_cast<const T*>(paged.v_pairs) + kv_head * paged.v_pair_head_stride,
            BlockSplitter::make(paged.block_len)};
  }

  __device__ __forceinline__ RowAddress pair(const AttentionParams<T>& params,
                                             int token,
                                             int id) const {
    return pair_of_block(params, splitter.row(token), id);
  }

  __device__ __forceinline__ static bool is_near(const AttentionParams<T>& params) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return all_near(paged.k_pair_block_stride,
                    paged.v_pair_block_stride,
                    paged.k_pair_token_stride,
                    paged.v_pair_token_stride);
  }

  struct Steps : BlockSteps {
    __device__ __forceinline__ static Steps make(const AttentionParams<T>& params) {
      const PagedIteratorParams& paged = params.paged_iter_params;
      using Plain = KvTraits<T, T>;
      return {{{near_bytes_of<Plain>(paged.k_pair_block_stride),
                near_bytes_of<Plain>(paged.v_pair_block_stride)},
               {near_bytes_of<Plain>(paged.k_pair_token_stride),
                near_bytes_of<Plain>(paged.v_pair_token_stride)}}};
    }
  };

  __device__ __forceinline__ RowAddress near_pair(const Steps& steps, uint64_t row, int id) const {
    const uint64_t block = static_cast<unsigned>(id);
    return {reinterpret_cast<const char*>(k) + block * steps.block.k + row * steps.row.k,
            reinterpret_cast<const char*>(v) + block * steps.block.v + row * steps.row.v};
  }

  __device__ __forceinline__ RowAddress pair_of_block(const AttentionParams<T>& params,
                                                      unsigned row,
                                                      int id) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int64_t block = static_cast<unsigned>(id);
    const int64_t in_block = row;
    return {reinterpret_cast<const char*>(k + block * paged.k_pair_block_stride +
                                          in_block * paged.k_pair_token_stride),
            reinterpret_cast<const char*>(v + block * paged.v_pair_block_stride +
                                          in_block * paged.v_pair_token_stride)};
  }
};

}  // namespace attn
