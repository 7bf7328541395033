// SPDX-License-Identifier: Apache-2.0
// A tile whose queries see no key at all: out = 0, lse = -inf, or, of a rank that leaves a part,
// what stands for no key in a merge. It never reaches the consumers.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/softmax.cuh"

namespace attn::sm90 {

// By one warp: maximum -inf, sum 0, in the place of the tile's first split. No output: a merge
// passes over that of a piece without weight.
template <class Traits>
__device__ __forceinline__ void write_empty_partial(const Arguments<typename Traits::T>& arguments,
                                                    const QueryTile& tile) {
  const AttentionParams<typename Traits::T>& params = arguments.params;
  const PackedRows packed = packed_rows(arguments);
  const int rows = packed.rows(tile.rows);
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int row = lane; row < rows; row += 32) {
    // [token_num, num_heads]
    const int64_t token = tile.first_token + packed.token(row);
    const int64_t partial = token * params.num_heads + tile.head + packed.head(row);
    if (packed.has_head(row)) {
      *reinterpret_cast<float2*>(params.partial_ML + partial * 2) = {-kInfinity, 0.0f};
    }
  }
}

// By one warp.
template <class Traits>
__device__ __forceinline__ void write_empty_tile(const Arguments<typename Traits::T>& arguments,
                                                 const QueryTile& tile) {
  const AttentionParams<typename Traits::T>& params = arguments.params;
  if (params.cp_size > 1) {
    write_empty_partial<Traits>(arguments, tile);
    return;
  }
  const PackedRows packed = packed_rows(arguments);
  const int rows = packed.rows(tile.rows);
  const int lane = threadIdx.x % 32;
  constexpr int kChunks = Traits::kHeadDimV / 8;  // of 16 bytes
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    // out [token_num, num_heads, head_dim_v]
    const int64_t token = tile.first_token + packed.token(row);
    const int64_t out_row = token * params.num_heads + tile.head + packed.head(row);
    if (lane < kChunks && packed.has_head(row)) {
      *reinterpret_cast<uint4*>(params.out + out_row * Traits::kHeadDimV + lane * 8) =
          uint4{0, 0, 0, 0};
    }
  }
  if (params.lse != nullptr) {
#pragma unroll 1
    for (int row = lane; row < rows; row += 32) {
      // lse [num_heads, token_num]
      if (!packed.has_head(row)) {
        continue;
      }
      const int64_t head = tile.head + packed.head(row);
      params.lse[head * params.token_num + tile.first_token + packed.token(row)] = -kInfinity;
    }
  }
}

}  // namespace attn::sm90
