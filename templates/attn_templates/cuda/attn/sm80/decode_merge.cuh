// SPDX-License-Identifier: Apache-2.0
// The warps of a decode CTA put their rows together at the end of a segment.
#pragma once

#include "attn/sm80/decode_products.cuh"

namespace attn::sm80 {

// Rows as they leave: warp w owns the rows w, w + kWarps, ... A lane has of each the columns
// (step * 32 + lane) * kVector and the next ones.
template <class Config>
struct OwnedRows {
  using Traits = DecodeTraits<Config>;
  static constexpr int kVector = Traits::kHeadDim % 128 == 0 ? 4 : 2;
  static constexpr int kSteps = (Traits::kHeadDim + 32 * kVector - 1) / (32 * kVector);

  struct alignas(kVector * 4) Vector {
    float x[kVector];
  };

  struct Row {
    Vector output[kSteps];  // unnormalised: relative to max
    float max;              // log2 units
    float sum;
  };

  Row rows[Traits::kOwnedRows];

  __device__ __forceinline__ static int row(int owned, int warp) {
    return warp + owned * Traits::kWarps;
  }

  __device__ __forceinline__ static int column(int step, int lane) {
    return (step * 32 + lane) * kVector;
  }

  // Lanes beyond the width of a row have no columns.
  __device__ __forceinline__ static bool has(int step, int lane) {
    return Traits::kHeadDim % (32 * kVector) == 0 || column(step, lane) < Traits::kHeadDim;
  }
};

// Where the merging warps exchange rows: the slot of the ring that all have just used up, as float
// [16, pitch] of each warp. The XOR keeps the rows of the four lanes of a quad in different banks.
template <class Config>
struct Exchange {
  using Tile = typename DecodeTraits<Config>::PieceTile;
  static constexpr int kRows = 16;
  static constexpr int kPitch = Tile::kPitch;
  static_assert(kRows * kPitch * sizeof(float) <= sizeof(Piece<Config>),
                "16 rows fit the piece of a warp");

  __device__ __forceinline__ static float* at(Piece<Config>& piece, int row, int column) {
    return reinterpret_cast<float*>(&piece) + row * kPitch + (column ^ (row / 2 % 4 * 8));
  }
};

// Puts the rows of all warps together, 16 at a time:
//   M = max_w m_w        O = sum_w 2^(m_w - M) O_w        l = sum_w 2^(m_w - M) l_w
// The order of the warps is fixed, so the same parts give the same bits. `slot` may be filled again
// afterwards. Called by all warps.
template <class Config>
__device__ __forceinline__ void merge_warps(OwnedRows<Config>& owned,
                                            RowState<Config>& state,
                                            DecodeStorage<Config>& storage,
                                            int slot,
                                            int warp,
                                            int lane) {
  using Traits = DecodeTraits<Config>;
  using Own = OwnedRows<Config>;
  constexpr int kRound = Traits::kRowTiles < 2 ? Traits::kRowTiles : 2;  // row tiles at a time
  constexpr int kOwnedOfRound = kRound * 8 / Traits::kWarps;
  state.finish();
#pragma unroll
  for (int n = 0; n < Traits::kRowTiles; ++n) {
    if (lane < 4) {
      storage.max_sum[warp][n * 8 + lane * 2] = {state.reference[n][0], state.sum[n][0]};
      storage.max_sum[warp][n * 8 + lane * 2 + 1] = {state.reference[n][1], state.sum[n][1]};
    }
  }
#pragma unroll
  for (int first = 0; first < Traits::kRowTiles; first += kRound) {
#pragma unroll
    for (int n = 0; n < kRound; ++n) {
#pragma unroll
      for (int i = 0; i < Traits::kDepthFragments; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          *Exchange<Config>::at(storage.ring[warp][slot],
                                n * 8 + lane % 4 * 2 + c % 2,
                                i * 16 + c / 2 * 8 + lane / 4) = state.output[i][first + n][c];
        }
      }
    }
    __syncthreads();  // the parts of all warps are visible
#pragma unroll
    for (int own = 0; own < kOwnedOfRound; ++own) {
      const int row = Own::row(own, warp);  // within the round
      typename Own::Row& result = owned.rows[first * 8 / Traits::kWarps + own];
      result.max = -kInfinity;
#pragma unroll
      for (int other = 0; other < Traits::kWarps; ++other) {
        result.max = fmaxf(result.max, storage.max_sum[other][first * 8 + row].x);
      }
      const float reference = result.max == -kInfinity ? 0.0f : result.max;
      result.sum = 0.0f;
#pragma unroll
      for (int step = 0; step < Own::kSteps; ++step) {
        result.output[step] = {};
      }
#pragma unroll
      for (int other = 0; other < Traits::kWarps; ++other) {
        const float2 part = storage.max_sum[other][first * 8 + row];
        const float weight = exp2_approximate(part.x - reference);
        result.sum += weight * part.y;
#pragma unroll
        for (int step = 0; step < Own::kSteps; ++step) {
          if (Own::has(step, lane)) {
            const auto value = *reinterpret_cast<const typename Own::Vector*>(
                Exchange<Config>::at(storage.ring[other][slot], row, Own::column(step, lane)));
#pragma unroll
            for (int x = 0; x < Own::kVector; ++x) {
              result.output[step].x[x] += weight * value.x[x];
            }
          }
        }
      }
    }
    __syncthreads();  // all have read: the exchange may be written again
  }
}

}  // namespace attn::sm80
