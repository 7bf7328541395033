// SPDX-License-Identifier: Apache-2.0
// A row of the output of which pieces are known, and what they come to.
#pragma once

#include "attn/arithmetic.cuh"
#include "attn/params.h"
#include "attn/types.h"

namespace attn {

// The pieces of one row. Piece s is (m_s in log2 units, l_s) and the unnormalised output O_s; only
// the outputs of [first_output, end_output) are at hand.
struct Pieces {
  const float2* max_and_sum;  // of piece 0
  const float* output;        // of piece 0
  int64_t max_and_sum_step;   // from a piece to the next, in pairs
  int64_t output_step;        // floats
  int count;
  int first_output;
  int end_output;
};

// The splits of a row.
template <int kHeadDimV, class T>
__device__ __forceinline__ Pieces
splits_of_row(const AttentionParams<T>& params, int64_t rows, int64_t row, int splits) {
  return {reinterpret_cast<const float2*>(params.partial_ML) + row,  // [splits, rows]
          params.partial_O + row * kHeadDimV,                        // [splits, rows, head_dim_v]
          rows,
          rows * kHeadDimV,
          splits,
          0,
          splits};
}

// The parts that the ranks have left of a row. Where the caller adds up the outputs of the ranks,
// this one has its own O only.
template <int kHeadDimV, class T>
__device__ __forceinline__ Pieces parts_of_row(const AttentionParams<T>& params, int64_t row) {
  const bool is_complete = params.cp_form == CpForm::kComplete;
  const int64_t to_first = -params.cp_rank * params.cp_stride;  // from this rank's part to rank 0's
  return {reinterpret_cast<const float2*>(params.cp_ML + to_first) + row,  // [rows]
          params.cp_O + to_first + row * kHeadDimV,                        // [rows, head_dim_v]
          params.cp_stride / 2,
          params.cp_stride,
          params.cp_size,
          is_complete ? 0 : params.cp_rank,
          is_complete ? params.cp_size : params.cp_rank + 1};
}

// What a row comes to:
//   M = max_s m_s        w_s = 2^(m_s - M)
//   O = sum_s w_s O_s    L = sum_s w_s l_s
// M is 0 where no piece has seen a key: then O = L = 0.
template <int kPairs>
struct MergedRow {
  float2 output[kPairs];  // columns lane * 2 + i * 64 and the next
  float reference;        // M
  float sum;              // L
};

// Pieces whose outputs a warp reads at a time: a row has one warp, which must keep kilobytes in
// flight.
template <int kPairs>
constexpr int kBatch = 16 / kPairs;

// The columns of a lane.
template <int kHeadDimV, int kPairs>
__device__ __forceinline__ void load_output(float2 (&output)[kPairs],
                                            const Pieces& pieces,
                                            int piece,
                                            int lane) {
  const float* const columns = pieces.output + piece * pieces.output_step;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int column = lane * 2 + i * 64;
    output[i] = column < kHeadDimV ? *reinterpret_cast<const float2*>(columns + column)
                                   : float2{0.0f, 0.0f};
  }
}

// Pieces without weight: where a rank sees none of the keys of a row, only (max, sum) is left, its
// output may hold anything. Every split has a key, and a test would stand in the way of its loads.
enum class Weightless : int { kAdded, kSkipped };

// The largest m_s, by one warp.
__device__ __forceinline__ float largest_reference(const Pieces& pieces, int lane) {
  float top = -kInfinity;
  for (int s = lane; s < pieces.count; s += 32) {
    top = fmaxf(top, pieces.max_and_sum[s * pieces.max_and_sum_step].x);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  }
  return top;
}

// O += sum_s w_s O_s over 32 pieces from `first` on; each lane has the weight of one.
template <int kHeadDimV, Weightless kWeightless, int kPairs>
__device__ __forceinline__ void add_outputs(
    float2 (&sum)[kPairs], const Pieces& pieces, int first, float weight, int lane) {
  const int begin = max(first, pieces.first_output);
  const int end = min(min(first + 32, pieces.count), pieces.end_output);
  const auto weight_of = [&](int piece) {
    return __shfl_sync(0xffffffffu, weight, (piece - first) % 32);
  };
  const auto is_added = [&](int piece) {
    return piece < end && (kWeightless == Weightless::kAdded || weight_of(piece) != 0.0f);
  };
  for (int s = begin; s < end; s += kBatch<kPairs>) {
    float2 outputs[kBatch<kPairs>][kPairs];
#pragma unroll
    for (int j = 0; j < kBatch<kPairs>; ++j) {
      if (is_added(s + j)) {
        load_output<kHeadDimV>(outputs[j], pieces, s + j, lane);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch<kPairs>; ++j) {
      const float w = weight_of(s + j);
      if (is_added(s + j)) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          sum[i].x += w * outputs[j][i].x;
          sum[i].y += w * outputs[j][i].y;
        }
      }
    }
  }
}

// By one warp.
template <int kHeadDimV, int kPairs, Weightless kWeightless>
__device__ __forceinline__ MergedRow<kPairs> merge(const Pieces& pieces, int lane) {
  const float top = largest_reference(pieces, lane);
  MergedRow<kPairs> row{};
  row.reference = top == -kInfinity ? 0.0f : top;
  for (int first = 0; first < pieces.count; first += 32) {
    float weight = 0.0f;
    if (first + lane < pieces.count) {
      const float2 mine = pieces.max_and_sum[(first + lane) * pieces.max_and_sum_step];
      weight = exp2f(mine.x - row.reference);
      row.sum += weight * mine.y;
    }
    add_outputs<kHeadDimV, kWeightless>(row.output, pieces, first, weight, lane);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    row.sum += __shfl_xor_sync(0xffffffffu, row.sum, step);
  }
  return row;
}

}  // namespace attn
