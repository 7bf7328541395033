// SPDX-License-Identifier: Apache-2.0
// Which key tiles a split works on: the one place that cuts the keys of a query tile, for the
// attention kernel, for the reduction and (compiled by a host compiler) for the tests.
// attn_runtime/plan.py holds the numpy twin.
#pragma once

#include "attn/params.h"

namespace attn {

// Key tiles [begin, end); empty when begin == end.
struct TileRange {
  int begin;
  int end;
};

// Splits of a query tile that have keys, when it sees the key tiles [begin, end). At most
// plan.split_cnt.
//
//   equal splits (split_tiles == 0):   min(split_cnt, end - begin)
//   chunks of split_tiles tiles:       ceil(end / split_tiles) - floor(begin / split_tiles)
//
// A tile with at most one split is written by split 0 itself, and the reduction passes over it.
__device__ __forceinline__ int split_count(int begin, int end, const TilePlan& plan) {
  const int tiles = end - begin;
  if (tiles <= 0) {
    return 0;
  }
  if (plan.split_tiles > 0) {
    return (end - 1) / plan.split_tiles + 1 - begin / plan.split_tiles;
  }
  return plan.split_cnt < tiles ? plan.split_cnt : tiles;
}

// The key tiles of one split. Splits 0 .. split_count - 1 are not empty, follow one another and
// cover [begin, end); every later split is empty.
//
//   equal splits, T = end - begin tiles into n:   begin + [floor(s T / n), floor((s + 1) T / n))
//   where, with T = q n + r,                      floor(s T / n) = s q + floor(s r / n)
//   chunk c = floor(begin / split_tiles) + s:     [c split_tiles, (c + 1) split_tiles), clipped
//
// The bounds of a chunk depend on nothing but its index: neither on the batch nor on any length.
__device__ __forceinline__ TileRange split_range(int begin,
                                                 int end,
                                                 const TilePlan& plan,
                                                 int split) {
  const int count = split_count(begin, end, plan);
  if (split >= count) {
    return {end, end};
  }
  if (plan.split_tiles > 0) {
    const int64_t chunk = begin / plan.split_tiles + split;
    const int64_t first = chunk * plan.split_tiles;
    const int64_t last = first + plan.split_tiles;
    return {first > begin ? static_cast<int>(first) : begin,
            last < end ? static_cast<int>(last) : end};
  }
  if (count == 1) {
    return {begin, end};  // without a division
  }
  const unsigned each = static_cast<unsigned>(end - begin) / count;
  const unsigned rest = static_cast<unsigned>(end - begin) % count;
  const unsigned next = split + 1;  // at most kMaxSplits: the products stay below 2^32
  return {begin + static_cast<int>(split * each + split * rest / count),
          begin + static_cast<int>(next * each + next * rest / count)};
}

}  // namespace attn
