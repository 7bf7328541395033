// SPDX-License-Identifier: Apache-2.0
// The warps of a decode CTA put their rows together at the end of a segment.
#pragma once

#include "attn/sm80/decode_products.cuh"

namespace attn::sm80 {

// A row as it leaves. Its elements stand in the order in which the lanes of a product hold them, so
// that they go through memory as vectors: vector u is part u / 8 of what the lanes with g = u % 8
// have of the row. A lane has the vectors step * 32 + lane.
template <class Config>
struct MergedRow {
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kVector = kHeadDim % 128 == 0 ? 4 : 2;
  static constexpr int kSteps = (kHeadDim + 32 * kVector - 1) / (32 * kVector);

  struct alignas(kVector * 4) Vector {
    float x[kVector];
  };

  Vector output[kSteps];  // unnormalised: relative to max
  float max;              // log2 units; -inf: has seen nothing
  float sum;

  // Where a vector begins.
  __device__ __forceinline__ static int place(int step, int lane) {
    return (step * 32 + lane) * kVector;
  }

  // Lanes beyond the width of a row have no vectors.
  __device__ __forceinline__ static bool has(int step, int lane) {
    return kHeadDim % (32 * kVector) == 0 || place(step, lane) < kHeadDim;
  }

  // The column of element x of a vector.
  __device__ __forceinline__ static int column(int step, int x, int lane) {
    const int value = (step * 4 + lane / 8) * kVector + x;
    return output_column<Config>(value / 2, value % 2 * 2, lane % 8 * 4);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      output[step] = {};
    }
    max = -kInfinity;
    sum = 0.0f;
  }

  // O += weight O'
  __device__ __forceinline__ void add(int step, const Vector& other, float weight) {
#pragma unroll
    for (int x = 0; x < kVector; ++x) {
      output[step].x[x] += weight * other.x[x];
    }
  }

  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int x = 0; x < kVector; ++x) {
        output[step].x[x] *= factor;
      }
    }
    sum *= factor;
  }
};

// Where the merging warps exchange rows: the slot of the ring that all have just used up, as float
// [16, pitch] of each warp. The XOR keeps the rows of the four lanes of a quad in different banks.
template <class Config>
struct Exchange {
  using Traits = DecodeTraits<Config>;
  using Row = MergedRow<Config>;
  static constexpr int kPitch = (Traits::kHeadDim + 63) / 64 * 64;
  // Row tiles at a time: two, where they fit.
  static constexpr bool kFitsTwo = 16 * kPitch * sizeof(float) <= sizeof(Piece<Config>);
  static constexpr int kRowTiles = Traits::kRowTiles < 2 || !kFitsTwo ? 1 : 2;
  static constexpr int kRows = 8 * kRowTiles;
  static_assert(kRows * kPitch * sizeof(float) <= sizeof(Piece<Config>),
                "the rows fit the piece of a warp");

  __device__ __forceinline__ static typename Row::Vector* at(Piece<Config>& piece,
                                                             int row,
                                                             int place) {
    float* const first = reinterpret_cast<float*>(&piece) + row * kPitch;
    return reinterpret_cast<typename Row::Vector*>(first + (place ^ (row / 2 % 4 * 8)));
  }

  // This warp's part of the row tiles from `first` on.
  __device__ __forceinline__ static void store(Piece<Config>& piece,
                                               const RowState<Config>& state,
                                               int first,
                                               int lane) {
    constexpr int kVector = Row::kVector;
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int part = 0; part < Traits::kHeadDim / 8 / kVector; ++part) {
          typename Row::Vector vector;
#pragma unroll
          for (int x = 0; x < kVector; ++x) {
            const int value = part * kVector + x;
            vector.x[x] = state.output[value / 2][first + n][value % 2 * 2 + c];
          }
          *at(piece, n * 8 + lane % 4 * 2 + c, (part * 8 + lane / 4) * kVector) = vector;
        }
      }
    }
  }

  // A row of all warps:
  //   M = max_w m_w        O = sum_w 2^(m_w - M) O_w        l = sum_w 2^(m_w - M) l_w
  // The order of the warps is fixed, so the same parts give the same bits.
  __device__ __forceinline__ static Row load(
      DecodeStorage<Config>& storage, int slot, int first_row, int row, int lane) {
    Row result;
    result.clear();
#pragma unroll
    for (int warp = 0; warp < Traits::kWarps; ++warp) {
      result.max = fmaxf(result.max, storage.max_sum[warp][first_row + row].x);
    }
    const float reference = result.max == -kInfinity ? 0.0f : result.max;
#pragma unroll
    for (int warp = 0; warp < Traits::kWarps; ++warp) {
      const float2 part = storage.max_sum[warp][first_row + row];
      const float weight = exp2_approximate(part.x - reference);
      result.sum += weight * part.y;
#pragma unroll
      for (int step = 0; step < Row::kSteps; ++step) {
        if (Row::has(step, lane)) {
          result.add(step, *at(storage.ring[warp][slot], row, Row::place(step, lane)), weight);
        }
      }
    }
    return result;
  }
};

// Puts the rows of all warps together and gives them away: warp w the rows w, w + kWarps, ..., each
// to `leave(row, MergedRow)`. The slot is read until the next barrier. Called by all warps.
template <class Config, class Leave>
__device__ __forceinline__ void merge_warps(RowState<Config>& state,
                                            DecodeStorage<Config>& storage,
                                            int slot,
                                            int row_count,
                                            float value_factor,
                                            int warp,
                                            int lane,
                                            Leave leave) {
  using Traits = DecodeTraits<Config>;
  using Exchanged = Exchange<Config>;
  state.finish(value_factor);
#pragma unroll
  for (int n = 0; n < Traits::kRowTiles; ++n) {
    if (lane < 4) {
      storage.max_sum[warp][n * 8 + lane * 2] = {state.reference[n][0], state.sum[n][0]};
      storage.max_sum[warp][n * 8 + lane * 2 + 1] = {state.reference[n][1], state.sum[n][1]};
    }
  }
#pragma unroll
  for (int first = 0; first < Traits::kRowTiles; first += Exchanged::kRowTiles) {
    if (first > 0) {
      __syncthreads();  // all have read: the slot may be written again
    }
    Exchanged::store(storage.ring[warp][slot], state, first, lane);
    __syncthreads();  // the parts of all warps are visible
    const int count = min(row_count - first * 8, Exchanged::kRows);
#pragma unroll 1
    for (int row = warp; row < count; row += Traits::kWarps) {
      leave(first * 8 + row, Exchanged::load(storage, slot, first * 8, row, lane));
    }
  }
}

}  // namespace attn::sm80
