// SPDX-License-Identifier: Apache-2.0
// What decode on a quantised cache has beside decode_products.cuh. The products multiply codes c
// (attn/sm80/decode_halves.cuh); scales and zero points, which belong to tokens, go to the other
// operand:
//
//   S_t = scale_t (q . c_t) + zero_t (sum of q)
//   O   = sum_t (p_t scale_t) (c_t - centre) + sum_t p_t zero'_t      zero' = zero + centre scale
//
// The centre is taken off V because a sum of codes alone would grow without bound, and with it what
// each product cuts off.
#pragma once

#include "attn/sm80/decode_traits.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// What the elements of a KV head are multiplied by, K by k_scale and V by v_scale of e4m3.
template <class Config>
__device__ __forceinline__ float head_scale(const AttentionParams<typename Config::T>& params,
                                            const float* scales,
                                            int kv_head) {
  if constexpr (DecodeTraits<Config>::Kv::kType == KvType::kE4m3) {
    return scales == nullptr ? 1.0f : scales[kv_head * params.kv_scale_stride];
  } else {
    return 1.0f;
  }
}

// --- Q ------------------------------------------------------------------------------------------

// Rows of Q times 2^e are halves that keep all of their bits: the largest element of all rows (they
// meet the same keys) comes close to the largest half.
//   up    2^e
//   unit  what a product of such a row and of K is multiplied by to be the score of a code
template <class Config, bool kIsQuantised = DecodeTraits<Config>::Kv::kIsQuantised>
struct QueryScale {
  static constexpr float unit = 1.0f;
};

template <class Config>
struct QueryScale<Config, true> {
  using Code = Halves<typename Config::Tkv>;

  float up;
  float unit;

  // From the size of the largest element.
  __device__ __forceinline__ static QueryScale of(float largest) {
    // As biased exponents: up = 2^(14 - log2(largest)), of a normal number in any case.
    const int exponent = min(max(__float_as_int(largest) >> 23, 41), 227);
    return {__int_as_float((268 - exponent) << 23),
            __int_as_float((exponent - 14) << 23) * (1.0f / Code::kUnit)};
  }

  // Two elements of T for half `half` of a step: that of odd pairs is smaller by as much as their
  // codes are larger.
  template <class T>
  __device__ __forceinline__ uint32_t scaled(const uint32_t& two, int half_of_step, T) const {
    const T* const x = reinterpret_cast<const T*>(&two);
    const float by = half_of_step == 0 ? up : up * (1.0f / Code::kOdd);
    return pack(static_cast<float>(x[0]) * by, static_cast<float>(x[1]) * by, half{});
  }
};

// Sums of the rows 8n + 2t and 8n + 2t + 1 of Q, in QueryScale's unit; nothing where tokens have no
// zero point.
template <class Config, bool kHasPairs = DecodeTraits<Config>::Kv::kHasPairs>
struct QuerySums {
  template <class Query>
  __device__ __forceinline__ void add_up(const Query&, int) {}
};

template <class Config>
struct QuerySums<Config, true> {
  using Traits = DecodeTraits<Config>;
  using Code = Halves<typename Config::Tkv>;

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
        own[n] += sum_of(b[n][0]) + Code::kOdd * sum_of(b[n][1]);
      }
    }
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      own[n] += __shfl_xor_sync(kWarp, own[n], 1);
      own[n] += __shfl_xor_sync(kWarp, own[n], 2);
      own[n] *= Code::kUnit;
      sums[n][0] = __shfl_sync(kWarp, own[n], lane % 4 * 8);
      sums[n][1] = __shfl_sync(kWarp, own[n], lane % 4 * 8 + 4);
    }
  }

  __device__ __forceinline__ static float sum_of(const uint32_t& two) {
    const half* const bits = reinterpret_cast<const half*>(&two);
    return __half2float(bits[0]) + __half2float(bits[1]);
  }
};

// --- scores -------------------------------------------------------------------------------------

// The (scale, zero) of a token.
struct ScaleZero {
  float scale;
  float zero;

  // One load of a word, where elements would be two.
  __device__ __forceinline__ static ScaleZero of(uint32_t pair, __nv_bfloat16) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }

  __device__ __forceinline__ static ScaleZero of(uint32_t pair, half) {
    const float2 both = __half22float2(*reinterpret_cast<const half2*>(&pair));
    return {both.x, both.y};
  }
};

// The pairs of K and of V of the tokens g and g + 8 of some units; nothing where tokens have none.
template <class Config, bool kHasPairs = DecodeTraits<Config>::Kv::kHasPairs>
struct StepPairs {
  __device__ __forceinline__ static StepPairs load(const Unit<Config>*, int) { return {}; }
};

template <class Config>
struct StepPairs<Config, true> {
  static constexpr int kUnits = DecodeTraits<Config>::kTogether;

  ScaleZero keys[kUnits][2];
  ScaleZero values[kUnits][2];

  __device__ __forceinline__ static StepPairs load(const Unit<Config>* units, int lane) {
    StepPairs pairs;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint2 both = units[unit].pairs[lane / 4 + i * 8];
        pairs.keys[unit][i] = ScaleZero::of(both.x, typename Config::T{});
        pairs.values[unit][i] = ScaleZero::of(both.y, typename Config::T{});
      }
    }
    return pairs;
  }

  // Of V.
  __device__ __forceinline__ float largest_scale() const {
    float largest = 0.0f;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      largest = fmaxf(largest, fmaxf(values[unit][0].scale, values[unit][1].scale));
    }
    return largest;
  }
};

// scores *= scale, += zero (sum of q), of the tokens g and g + 8 of a unit.
template <class Config>
__device__ __forceinline__ void scale_scores(float (&scores)[DecodeTraits<Config>::kRowTiles][4],
                                             const StepPairs<Config>& pairs,
                                             int unit,
                                             const QuerySums<Config>& query) {
  if constexpr (DecodeTraits<Config>::Kv::kHasPairs) {
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      const ScaleZero& pair = pairs.keys[unit][token];
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
  __device__ __forceinline__ bool exceeded_by(const StepPairs<Config>&) const { return false; }
  __device__ __forceinline__ void weigh(
      float (&)[DecodeTraits<Config>::kTogether][DecodeTraits<Config>::kRowTiles][4],
      const StepPairs<Config>&) {}
  __device__ __forceinline__ void add_weights(int, uint32_t, uint32_t) {}
};

//   unit       of the output: p scale / unit stays in the range of half. It grows with the scales;
//              one that exceeds it by kUnitLag is met by another unit
//   zero_sum   sum of p zero', of this lane's tokens only until finish()
//   weights    sum of p scale / unit since the centre was last taken off, rounded as in the
//              products
template <class Config>
struct ValueScales<Config, true> {
  using Traits = DecodeTraits<Config>;
  using Code = Halves<typename Config::Tkv>;
  static constexpr int kRowTiles = Traits::kRowTiles;
  // p reaches 2^kLag (softmax.cuh): together less than the largest half, 2^16
  static constexpr float kUnitLag = 64.0f;

  float unit;
  float inverse;  // 1 / unit; 0 where all scales were 0
  float zero_sum[kRowTiles][2];
  float weights[kRowTiles][2];

  __device__ __forceinline__ void clear() {
    unit = inverse = 0.0f;
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      zero_sum[n][0] = zero_sum[n][1] = 0.0f;
      weights[n][0] = weights[n][1] = 0.0f;
    }
  }

  __device__ __forceinline__ void rescale(int n, int row, float factor) {
    zero_sum[n][row] *= factor;
    weights[n][row] *= factor;
  }

  __device__ __forceinline__ bool exceeded_by(const StepPairs<Config>& pairs) const {
    return pairs.largest_scale() > unit * kUnitLag;
  }

  // Turns probabilities into factors of the codes of V, in place.
  __device__ __forceinline__ void weigh(float (&p)[Traits::kTogether][kRowTiles][4],
                                        const StepPairs<Config>& pairs) {
#pragma unroll
    for (int u = 0; u < Traits::kTogether; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const ScaleZero& token = pairs.values[u][i];
        const float zero = fmaf(Code::kCentre, token.scale, token.zero);
        const float scale = token.scale * inverse;
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            float& own = p[u][n][2 * i + row];
            zero_sum[n][row] = fmaf(own, zero, zero_sum[n][row]);
            own *= scale;
          }
        }
      }
    }
  }

  // Adds up what the products of row tile n have as P^T: the same product with a V of ones, whose
  // columns are all alike.
  __device__ __forceinline__ void add_weights(int n, uint32_t b0, uint32_t b1) {
    constexpr uint32_t kOnes = 0x3c003c00;
    constexpr uint32_t kAll[4] = {kOnes, kOnes, kOnes, kOnes};
    float sums[4] = {};
    multiply_add(sums, kAll, b0, b1, half{});
    weights[n][0] += sums[0];
    weights[n][1] += sums[1];
  }
};

}  // namespace attn::sm80
