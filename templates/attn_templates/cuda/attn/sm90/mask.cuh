// SPDX-License-Identifier: Apache-2.0
// Scores of keys that a query does not see become -inf.
#pragma once

#include "attn/key_range.cuh"
#include "attn/sm90/softmax.cuh"

namespace attn::sm90 {

// Limits on the columns of a block, for the two queries of a thread, less the thread's own first
// column: so that each of its columns 8 j + {0, 1} is compared as a constant.
struct ColumnLimits {
  int limit[2];
};

// The queries of a thread's two rows.
struct QueryPair {
  int query[2];
};

// The limits below which two queries see the keys of a block that starts at first_key:
// VisibleKeys::end, shortened where one rank has all keys and there is no window.
__device__ __forceinline__ ColumnLimits column_ends(const VisibleKeys& visible,
                                                    QueryPair pair,
                                                    int first_key,
                                                    int lane) {
  const int origin = first_key + lane % 4 * 2;
  ColumnLimits ends;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int position = visible.position(pair.query[h]);
    const bool to_last = !visible.causal && visible.window == 0;
    const bool is_simple = visible.causal && visible.shards.size == 1;
    const int end = to_last     ? visible.k_len
                    : is_simple ? min(position + 1, visible.k_len)
                                : visible.end(pair.query[h]);
    ends.limit[h] = end - origin;
  }
  return ends;
}

// The limits from which on they see them.
__device__ __forceinline__ ColumnLimits column_begins(const VisibleKeys& visible,
                                                      QueryPair pair,
                                                      int first_key,
                                                      int lane) {
  const int origin = first_key + lane % 4 * 2;
  return {{visible.first(pair.query[0]) - origin, visible.first(pair.query[1]) - origin}};
}

template <int kScores>
__device__ __forceinline__ void mask_from(float (&scores)[kScores], const ColumnLimits& ends) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const int column = i / 4 * 8 + i % 2;
    scores[i] = column < ends.limit[i / 2 % 2] ? scores[i] : -kInfinity;
  }
}

template <int kScores>
__device__ __forceinline__ void mask_before(float (&scores)[kScores], const ColumnLimits& begins) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const int column = i / 4 * 8 + i % 2;
    scores[i] = column >= begins.limit[i / 2 % 2] ? scores[i] : -kInfinity;
  }
}

// The blocks of [first, end) of which every query of a range sees every key.
__device__ __forceinline__ TileRange unmasked_blocks(KeyRange seen_by_all,
                                                     int keys_per_block,
                                                     TileRange blocks) {
  const int begin =
      min(max((seen_by_all.begin + keys_per_block - 1) / keys_per_block, blocks.begin), blocks.end);
  const int end = max(min(seen_by_all.end / keys_per_block, blocks.end), begin);
  return {begin, end};
}

}  // namespace attn::sm90
