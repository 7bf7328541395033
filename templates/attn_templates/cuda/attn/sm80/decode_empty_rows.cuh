// SPDX-License-Identifier: Apache-2.0
// Rows of a decode call that see no key.
#pragma once

#include "attn/sm80/decode_lengths.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// Where such rows go.
template <class T>
struct EmptyRows {
  T* out;
  float* lse;           // null: not wanted
  float* part_output;   // null: the rows are complete. Otherwise the part of a rank that has none
  float* part_max_sum;  // of the keys: of split 0 where splits are merged later
  int num_heads;
  int token_num;

  __device__ __forceinline__ static EmptyRows of(const DecodeArguments<T>& arguments) {
    const AttentionParams<T>& params = arguments.params;
    EmptyRows rows{params.out, params.lse, nullptr, nullptr, params.num_heads, params.token_num};
    if (params.cp_size > 1) {
      const bool has_splits = arguments.ranges.pieces && arguments.plan.split_cnt > 1;
      rows.part_output = has_splits ? params.partial_O : params.cp_O;
      rows.part_max_sum = has_splits ? params.partial_ML : params.cp_ML;
    }
    return rows;
  }

  // Zeros, and an lse of -inf. Called by a warp.
  template <class Config>
  __device__ __forceinline__ void clear(int64_t token, int head, int lane) const {
    const int64_t row = token * num_heads + head;
    if (part_output != nullptr) {
      clear_part<Config>(row, lane);
      return;
    }
    if (lane < Config::kHeadDim / 8) {
      reinterpret_cast<uint4*>(out + row * Config::kHeadDim)[lane] = {0, 0, 0, 0};
    }
    if (lse != nullptr && lane == 0) {
      lse[static_cast<int64_t>(head) * token_num + token] = -kInfinity;
    }
  }

 private:
  template <class Config>
  __device__ __forceinline__ void clear_part(int64_t row, int lane) const {
    float* const output = part_output + row * Config::kHeadDim;
#pragma unroll 1
    for (int column = lane * 4; column < Config::kHeadDim; column += 128) {
      *reinterpret_cast<float4*>(output + column) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    if (lane == 0) {
      *reinterpret_cast<float2*>(part_max_sum + row * 2) = {-kInfinity, 0.0f};
    }
  }
};

// The rows first_row, first_row + step, ... of the sequences of some lanes. Called by a warp.
template <class Config>
__device__ __noinline__ void clear_rows(EmptyRows<typename Config::T> empty,
                                        RowTile tile,
                                        Tokens tokens,
                                        unsigned lanes,
                                        int first_row,
                                        int step) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (; lanes != 0; lanes &= lanes - 1) {
    const int owner = __ffs(lanes) - 1;
    const int begin = __shfl_sync(kWarp, tokens.begin, owner);
    const int rows = tile.tokens_of(__shfl_sync(kWarp, tokens.count, owner)) * tile.heads;
#pragma unroll 1
    for (int row = first_row; row < rows; row += step) {
      empty.template clear<Config>(begin + tile.query(row), tile.head(row), lane);
    }
  }
}

}  // namespace attn::sm80
