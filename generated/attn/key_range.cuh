// SPDX-License-Identifier: Apache-2.0
// Which keys the queries of a tile see, and which of the sequence's keys this rank has. Compiled by
// a host compiler for the tests, too.
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

// How the keys of one sequence are spread over the ranks of a context-parallel group: in rounds of
// `size` chunks, one to each rank. A rank keeps its keys in the order of their positions.
//
//   kInterleaved   chunks of cp_chunk keys (1: key t is on rank t % size, at t / size)
//   kContiguous    one round: chunks of ceil(length / size) keys
//   kZigZag        two rounds of chunks of ceil(length / (2 size)) keys, the second in reverse
//                  order: rank r has the chunks r and 2 size - 1 - r, under a causal mask as much
//                  work as every other
struct KeyShards {
  int size;
  int rank;
  int chunk;      // keys
  bool mirrored;  // every second round gives its chunks out in reverse

  // Keys of this rank at positions below `position`, which is not negative:
  //   round = floor(position / (chunk size))      rest = position - round chunk size
  //   round chunk + clamp(rest - turn chunk, 0, chunk)      turn: the rank's place in the round
  // It never decreases with `position`. Unsigned, because chunk size may pass 2^31 by less than
  // size.
  __device__ __forceinline__ int keys_before(int position) const {
    if (size == 1) {
      return position;
    }
    const unsigned own = static_cast<unsigned>(chunk);
    const unsigned period = own * static_cast<unsigned>(size);
    const unsigned round = static_cast<unsigned>(position) / period;
    const unsigned rest = static_cast<unsigned>(position) - round * period;
    const unsigned turn =
        static_cast<unsigned>(mirrored && round % 2 == 1 ? size - 1 - rank : rank);
    const unsigned before = turn * own;
    const unsigned part = rest <= before ? 0 : rest - before;
    return static_cast<int>(round * own + (part < own ? part : own));
  }

  // Whether this rank has the key at a position.
  __device__ __forceinline__ bool holds(int position) const {
    return size == 1 || keys_before(position + 1) > keys_before(position);
  }
};

// The shards of a sequence of `length` keys.
__device__ __forceinline__ KeyShards
shards_of(KeySharding sharding, int cp_size, int cp_rank, int cp_chunk, int length) {
  if (cp_size == 1) {
    return {1, 0, 1, false};
  }
  if (sharding == KeySharding::kInterleaved) {
    return {cp_size, cp_rank, cp_chunk, false};
  }
  const bool mirrored = sharding == KeySharding::kZigZag;
  const int chunks = mirrored ? 2 * cp_size : cp_size;
  const int chunk = length / chunks + (length % chunks != 0);
  return {cp_size, cp_rank, chunk > 0 ? chunk : 1, mirrored};
}

// The mask as two limits per query. Query i sees those of this rank's keys that stand at positions
// from first to before end, with
//   p      = i + origin              the query's position
//   first  = p - window + 1 (0 without a window)
//   end    = p + 1 when causal, else p + window (the sequence's length without a window)
// The limits are given as indices of keys of this rank, clipped to [0, k_len]; with one rank, key j
// stands at position j. They never decrease with i. No sum here leaves 32 bits: a window that would
// is compared before it is added.
struct VisibleKeys {
  int origin;  // position of query 0
  int k_len;   // keys of the sequence on this rank: the rows that its cache holds
  int window;  // 0: none
  bool causal;
  KeyShards shards;

  __device__ __forceinline__ int position(int query) const { return query + origin; }

  __device__ __forceinline__ int first(int query) const {
    const int p = position(query);
    return window == 0 || p < window ? 0 : keys_before(p - window + 1);
  }

  __device__ __forceinline__ int end(int query) const {
    const int p = position(query);
    if (causal) {
      return keys_before(p + 1);
    }
    return window == 0 || p > kLastPosition - window ? k_len : keys_before(p + window);
  }

  // Keys that some query of [first_query, last_query] sees.
  __device__ __forceinline__ KeyRange any(int first_query, int last_query) const {
    return {first(first_query), end(last_query)};
  }

  // Keys that every query of [first_query, last_query] sees.
  __device__ __forceinline__ KeyRange all(int first_query, int last_query) const {
    return {first(last_query), end(first_query)};
  }

  // Keys of this rank below a position that may lie outside the sequence.
  __device__ __forceinline__ int keys_before(int position) const {
    const int keys = position < 0 ? 0 : shards.keys_before(position);
    return keys < k_len ? keys : k_len;
  }

  static constexpr int kLastPosition = 2147483647;
};

// What the queries of a sequence of `length` keys see on this rank; queries stand at its end unless
// offset_q says where the first one does.
template <class T>
__device__ __forceinline__ VisibleKeys
visible_keys(const AttentionParams<T>& params, int sequence, int q_len, int length, bool causal) {
  const KeyShards shards =
      shards_of(params.cp_sharding, params.cp_size, params.cp_rank, params.cp_chunk, length);
  const int origin = params.offset_q == nullptr ? length - q_len : params.offset_q[sequence];
  return {origin, shards.keys_before(length), params.window_size, causal, shards};
}

// Lengths in cu_k_len are those of the whole sequence.
template <class T>
__device__ __forceinline__ VisibleKeys
visible_keys(const AttentionParams<T>& params, int sequence, int q_len, bool causal) {
  const int length = params.cu_k_len[sequence + 1] - params.cu_k_len[sequence];
  return visible_keys(params, sequence, q_len, length, causal);
}

}  // namespace attn
