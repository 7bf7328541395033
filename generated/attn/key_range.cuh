// SPDX-License-Identifier: Apache-2.0
// Which keys the queries of a tile see.
#pragma once

#include "attn/params.h"
#include "attn/split.cuh"

namespace attn {

// Keys [begin, end) of a sequence; none when end <= begin.
struct KeyRange {
  int begin;
  int end;
};

// The tiles of cta_s keys that a range of keys touches.
__device__ __forceinline__ TileRange tiles_of(KeyRange keys, int cta_s) {
  if (keys.begin >= keys.end) {
    return {0, 0};
  }
  return {keys.begin / cta_s, (keys.end - 1) / cta_s + 1};
}

// Keys of this rank whose position lies below `position`. This one function knows how keys are
// spread over the ranks of a context-parallel group; with one rank, key j has position j.
__device__ __forceinline__ int keys_before(int position, int k_len) {
  return min(max(position, 0), k_len);
}

// The mask as two limits per query: query i of q_len sees the keys [first(i), end(i)), with
//   p      = i + k_len - q_len                       the query's position, aligned bottom-right
//   first  = p - window + 1 (0 without a window)
//   end    = p + 1 when causal, else p + window (k_len without a window)
// both clipped to [0, k_len]. They never decrease with i. No sum here leaves 32 bits: a window that
// would is compared before it is added.
struct VisibleKeys {
  int q_len;
  int k_len;
  int window;  // 0: none
  bool causal;

  __device__ __forceinline__ int position(int query) const { return query + k_len - q_len; }

  __device__ __forceinline__ int first(int query) const {
    const int p = position(query);
    return window == 0 || p < window ? 0 : keys_before(p - window + 1, k_len);
  }

  __device__ __forceinline__ int end(int query) const {
    const int p = position(query);
    if (causal) {
      return keys_before(p + 1, k_len);
    }
    return window == 0 || k_len - p <= window ? k_len : keys_before(p + window, k_len);
  }

  // Keys that some query of [first_query, last_query] sees.
  __device__ __forceinline__ KeyRange any(int first_query, int last_query) const {
    return {first(first_query), end(last_query)};
  }

  // Keys that every query of [first_query, last_query] sees.
  __device__ __forceinline__ KeyRange all(int first_query, int last_query) const {
    return {first(last_query), end(first_query)};
  }
};

}  // namespace attn
