// SPDX-License-Identifier: Apache-2.0
// The warps of a decode CTA put their rows together at the end of a segment.
#pragma once

#include "attn/sm80/decode_products.cuh"

namespace attn::sm80 {

// A row as it leaves: a lane has the columns (step * 32 + lane) * kVector and the next ones.
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

  __device__ __forceinline__ static int column(int step, int lane) {
    return (step * 32 + lane) * kVector;
  }

  // Lanes beyond the width of a row have no columns.
  __device__ __forceinline__ static bool has(int step, int lane) {
    return kHeadDim % (32 * kVector) == 0 || column(step, lane) < kHeadDim;
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

  __device__ __forceinline__ static float* at(Piece<Config>& piece, int row, int column) {
    return reinterpret_cast<float*>(&piece) + row * kPitch + (column ^ (row / 2 % 4 * 8));
  }

  // This warp's part of the row tiles from `first` on.
  __device__ __forceinline__ static void store(Piece<Config>& piece,
                                               const RowState<Config>& state,
                                               int first,
                                               int lane) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < Traits::kDepthFragments; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          *at(piece, n * 8 + lane % 4 * 2 + c % 2, output_column<Config>(i, c, lane)) =
              state.output[i][first + n][c];
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
          const float* const from = at(storage.ring[warp][slot], row, Row::column(step, lane));
          result.add(step, *reinterpret_cast<const typename Row::Vector*>(from), weight);
        }
      }
    }
    return result;
  }
};

// Puts the rows of all warps together and gives them away: warp w the rows w, w + kWarps, ..., each
// to `leave(row, MergedRow)`. The slot may be filled again afterwards. Called by all warps.
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
    Exchanged::store(storage.ring[warp][slot], state, first, lane);
    __syncthreads();  // the parts of all warps are visible
    const int count = min(row_count - first * 8, Exchanged::kRows);
#pragma unroll 1
    for (int row = warp; row < count; row += Traits::kWarps) {
      leave(first * 8 + row, Exchanged::load(storage, slot, first * 8, row, lane));
    }
    __syncthreads();  // all have read: the slot may be written again
  }
}

}  // namespace attn::sm80
