// SPDX-License-Identifier: Apache-2.0
// Which rows of a KV head's group a decode CTA packs together.
#pragma once

#include "attn/params.h"

namespace attn {

// The smallest tile. The kernel of plain calls takes one token of each sequence in it.
constexpr int kRowsOfOneToken = 8;

// `heads` query heads of one KV head at `cta_q` query tokens: row r is head r % heads of token
// r / heads. Groups wider than a tile are cut into head_tiles of them, at one token each.
struct RowTile {
  int kv_head;
  int first_head;   // of all heads
  int heads;        // rows of one token
  int first_query;  // of each sequence
  int tokens;       // most

  __device__ __forceinline__ int query(int row) const { return first_query + token(row); }
  __device__ __forceinline__ int head(int row) const {
    return first_head + row - token(row) * heads;
  }

  // row / heads. A tile has so few rows that half a row is more than any error of the division.
  __device__ __forceinline__ int token(int row) const {
    return tokens == 1 ? 0 : static_cast<int>(__fdividef(row + 0.5f, heads));
  }

  // Tokens that a sequence has in the tile.
  __device__ __forceinline__ int tokens_of(int q_len) const {
    return min(max(q_len - first_query, 0), tokens);
  }
};

// Columns lie with the KV head innermost, so that CTAs which read neighbouring rows of the cache
// run together; the tiles of one head come next.
template <class T>
__device__ __forceinline__ RowTile row_tile_of(const AttentionParams<T>& params,
                                               const TilePlan& plan,
                                               const RangePlan& ranges,
                                               int column) {
  // Most calls have one tile for a KV head: then nothing is divided.
  const int tile = column < params.num_kv_heads ? 0 : column / params.num_kv_heads;
  const int query_tile = tile < ranges.head_tiles ? 0 : tile / ranges.head_tiles;
  const int head = (tile - query_tile * ranges.head_tiles) * ranges.row_heads;
  RowTile rows;
  rows.kv_head = column - tile * params.num_kv_heads;
  rows.first_head = rows.kv_head * ranges.group + head;
  rows.heads = min(ranges.row_heads, ranges.group - head);
  rows.first_query = query_tile * plan.cta_q;
  rows.tokens = plan.cta_q;
  return rows;
}

}  // namespace attn
