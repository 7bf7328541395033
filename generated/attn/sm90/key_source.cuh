// SPDX-License-Identifier: Apache-2.0
// How K and V come to shared memory, and in what portions.
#pragma once

#include "attn/params.h"
#include "attn/types.h"

namespace attn::sm90 {

// How K and V come to shared memory.
//
//   cache          block_len          way
//   linear                            kTokenBoxes
//   paged, block   a multiple of 16   kBlockBoxes
//   paged, block   any other          kGathered
//
// Boxes could start at multiples of 8 rows, where the swizzle pattern starts over; but so many
// small ones take longer than the gather.
enum class KeySource : int {
  kTokenBoxes,  // TMA: a box is the rows of a block of keys
  kBlockBoxes,  // TMA: a box is rows of one block of the cache, box_rows() of them
  kGathered,    // one 16-byte copy after another, to a row's address
};

// Rows of one block of a paged cache that one TMA box takes: as many as divide both the cache's
// blocks and the kernel's, because a box must not leave either.
__device__ __forceinline__ int box_rows(int block_len, int cta_s) {
  int divisor = cta_s;
  for (int rest = block_len; rest != 0;) {
    const int next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  return divisor;
}

// Of the cache, where it consists of blocks.
template <class Traits>
__device__ __forceinline__ int block_len_of(const AttentionParams<typename Traits::T>& params) {
  return Traits::Config::kCache == CacheType::kBlock ? params.block_iter_params.block_len
                                                     : params.paged_iter_params.block_len;
}

template <class Traits>
__device__ __forceinline__ KeySource key_source(const AttentionParams<typename Traits::T>& params) {
  if constexpr (Traits::Config::kCache == CacheType::kLinear) {
    return KeySource::kTokenBoxes;
  } else {
    return block_len_of<Traits>(params) % Traits::kLeastBoxRows == 0 ? KeySource::kBlockBoxes
                                                                     : KeySource::kGathered;
  }
}

// Whether the (scale, zero) pairs of a box's rows lie one behind the other, from a multiple of 16
// bytes on: then the warp that loads the box loads them with it. In a block of a block cache they
// always do, in a paged cache where the tokens of a head are neighbours. Not at a single panel: its
// blocks follow each other so fast that one warp is too few.
template <class Traits>
__device__ __forceinline__ bool pairs_come_with_boxes(
    const AttentionParams<typename Traits::T>& params) {
  if constexpr (!Traits::Kv::kHasPairs || Traits::Config::kCache == CacheType::kLinear ||
                Traits::kPanels == 1) {
    return false;
  } else if constexpr (Traits::Config::kCache == CacheType::kBlock) {
    return key_source<Traits>(params) == KeySource::kBlockBoxes;
  } else {
    const PagedIteratorParams& paged = params.paged_iter_params;
    const auto bytes =
        reinterpret_cast<uint64_t>(paged.k_pairs) | reinterpret_cast<uint64_t>(paged.v_pairs);
    const int64_t elements = paged.k_pair_block_stride | paged.k_pair_head_stride |
                             paged.v_pair_block_stride | paged.v_pair_head_stride;
    return key_source<Traits>(params) == KeySource::kBlockBoxes && paged.k_pair_token_stride == 2 &&
           paged.v_pair_token_stride == 2 && bytes % 16 == 0 &&
           elements % (16 / static_cast<int>(sizeof(typename Traits::T))) == 0;
  }
}

// Producer warps that load K and V.
template <class Traits>
__device__ __forceinline__ int loader_warps(const AttentionParams<typename Traits::T>& params) {
  switch (key_source<Traits>(params)) {
    case KeySource::kTokenBoxes:
      return 1;
    case KeySource::kGathered:
      // Of rows themselves, one looks up addresses.
      return Traits::Kv::kIsQuantised ? 1 : 1 + Traits::kCopyWarps;
    default:
      if constexpr (Traits::Kv::kIsQuantised) {
        return 1;  // the others bring pairs
      }
      const int rows = box_rows(block_len_of<Traits>(params), Traits::kCtaS);
      return Traits::kCtaS <= Traits::kBoxesOfOneWarp * rows ? 1 : Traits::kBoxWarps;
  }
}

}  // namespace attn::sm90
