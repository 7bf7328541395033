// SPDX-License-Identifier: Apache-2.0
// What decode on a quantised cache has beside decode_products.cuh. The products multiply elements
// as Expander makes them; scales and zero points, which belong to tokens, go to the other operand:
//
//   S_t = scale_t (q . e_t) + zero'_t (sum of q)          zero' = zero + kCentre scale
//   O   = sum_t (p_t scale_t) e_t + sum_t p_t zero'_t
#pragma once

#include "attn/sm80/decode_traits.cuh"
#include "attn/sm80/dequantise.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// The (scale, zero') of a token.
template <class T>
struct ScaleZero {
  float scale;
  float zero;

  template <int kCentre>
  __device__ __forceinline__ static ScaleZero of(const uint32_t& pair) {
    const T* const bits = reinterpret_cast<const T*>(&pair);
    const float scale = static_cast<float>(bits[0]);
    return {scale, fmaf(static_cast<float>(kCentre), scale, static_cast<float>(bits[1]))};
  }
};

// --- scores -------------------------------------------------------------------------------------

// Sums of the rows 8n + 2t and 8n + 2t + 1 of Q; nothing where tokens have no zero point.
template <class Config, bool kHasPairs = DecodeTraits<Config>::Kv::kHasPairs>
struct QuerySums {
  template <class Query>
  __device__ __forceinline__ void add_up(const Query&, int) {}
};

template <class Config>
struct QuerySums<Config, true> {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;

  float sums[Traits::kRowTiles][2];

  // A lane has a quarter of row 8n + g.
  template <class Query>
  __device__ __forceinline__ void add_up(const Query& query, int lane) {
    float own[Traits::kRowTiles] = {};
#pragma unroll
    for (int k = 0; k < Traits::kDepthFragments; ++k) {
      uint32_t b[Traits::kRowTiles][2];
      query.fragment(b, k);
#pragma unroll
      for (int n = 0; n < Traits::kRowTiles; ++n) {
        own[n] += sum_of(b[n][0]) + sum_of(b[n][1]);
      }
    }
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      own[n] += __shfl_xor_sync(kWarp, own[n], 1);
      own[n] += __shfl_xor_sync(kWarp, own[n], 2);
      sums[n][0] = __shfl_sync(kWarp, own[n], lane % 4 * 8);
      sums[n][1] = __shfl_sync(kWarp, own[n], lane % 4 * 8 + 4);
    }
  }

  __device__ __forceinline__ static float sum_of(const uint32_t& two) {
    const T* const bits = reinterpret_cast<const T*>(&two);
    return static_cast<float>(bits[0]) + static_cast<float>(bits[1]);
  }
};

// scores *= scale, += zero' (sum of q), of the tokens g and g + 8.
template <class Config>
__device__ __forceinline__ void scale_scores(float (&scores)[DecodeTraits<Config>::kRowTiles][4],
                                             const Unit<Config>& unit,
                                             const QuerySums<Config>& query,
                                             int lane) {
  if constexpr (DecodeTraits<Config>::Kv::kHasPairs) {
    using Expand = Expander<typename Config::T, typename Config::Tkv>;
    using Pair = ScaleZero<typename Config::T>;
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      const Pair pair = Pair::template of<Expand::kCentre>(unit.key_pairs[lane / 4 + token * 8]);
#pragma unroll
      for (int n = 0; n < DecodeTraits<Config>::kRowTiles; ++n) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float& score = scores[n][token * 2 + row];
          score = fmaf(score, pair.scale, pair.zero * query.sums[n][row]);
        }
      }
    }
  }
}

// --- output -------------------------------------------------------------------------------------

// The parts of a warp's rows that only quantised values have; for others, nothing.
template <class Config, bool kHasPairs = DecodeTraits<Config>::Kv::kHasPairs>
struct ValueScales {
  __device__ __forceinline__ void clear() {}
  __device__ __forceinline__ void rescale(int, int, float) {}
};

//   unit       of the output: p scale / unit stays in the range of T. It grows with the scales; one
//              that exceeds it by kUnitLag is met by another unit
//   zero_sum   sum of p zero', of this lane's tokens only until finish()
template <class Config>
struct ValueScales<Config, true> {
  static constexpr int kRowTiles = DecodeTraits<Config>::kRowTiles;
  // p reaches 2^kLag (softmax.cuh): together less than the largest half, 2^16
  static constexpr float kUnitLag = 64.0f;

  float unit;
  float inverse;  // 1 / unit; 0 where all scales were 0
  float zero_sum[kRowTiles][2];

  __device__ __forceinline__ void clear() {
    unit = inverse = 0.0f;
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      zero_sum[n][0] = zero_sum[n][1] = 0.0f;
    }
  }

  __device__ __forceinline__ void rescale(int n, int row, float factor) {
    zero_sum[n][row] *= factor;
  }
};

}  // namespace attn::sm80
