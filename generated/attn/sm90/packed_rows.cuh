// SPDX-License-Identifier: Apache-2.0
// Rows of a tile that several query heads of a group share: they read the same keys.
#pragma once

#include "attn/sm90/arguments.h"

namespace attn::sm90 {

// Row r of a tile is head r % stride of token r / stride. The stride is a power of two that divides
// 64: the rows of a warpgroup are whole tokens, those of a warp are whole tokens or heads of one.
// Where a pack has fewer heads than that, at most 16, rows behind them are nobody's: they are
// computed, and not written.
struct PackedRows {
  int stride;
  int heads;

  __device__ __forceinline__ int token(int row) const { return row >> (31 - __clz(stride)); }
  __device__ __forceinline__ int head(int row) const { return row & (stride - 1); }

  __device__ __forceinline__ bool is_dense() const { return heads == stride; }
  __device__ __forceinline__ bool has_head(int row) const { return head(row) < heads; }

  // Of the first `tokens` tokens.
  __device__ __forceinline__ int rows(int tokens) const { return tokens * stride; }
};

template <class T>
__device__ __forceinline__ PackedRows packed_rows(const TmaArguments<T>& arguments) {
  return {arguments.plan.packed_heads, arguments.pack_heads};
}

}  // namespace attn::sm90
