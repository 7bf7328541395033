// SPDX-License-Identifier: Apache-2.0
// Rows of a tile that several query heads of a group share: they read the same keys.
#pragma once

#include "attn/params.h"

namespace attn::sm90 {

// Row r of a tile is head r % heads of token r / heads. Heads are a power of two that divides 64:
// the rows of a warpgroup are whole tokens, those of a warp are whole tokens or heads of one.
struct PackedRows {
  int heads;

  __device__ __forceinline__ int token(int row) const { return row >> (31 - __clz(heads)); }
  __device__ __forceinline__ int head(int row) const { return row & (heads - 1); }

  // Packs of so many heads.
  __device__ __forceinline__ int packs(int num_heads) const { return token(num_heads); }

  // Of the first `tokens` tokens.
  __device__ __forceinline__ int rows(int tokens) const { return tokens * heads; }
};

template <class T>
__device__ __forceinline__ PackedRows packed_rows(const TmaArguments<T>& arguments) {
  return {arguments.plan.packed_heads};
}

}  // namespace attn::sm90
