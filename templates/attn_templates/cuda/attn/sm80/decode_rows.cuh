// SPDX-License-Identifier: Apache-2.0
// What a decode warp keeps of its rows from stage to stage: the online softmax and the output.
#pragma once

#include "attn/sm80/decode_codes.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// What a warp has of its rows.
//   output     [columns x rows], unnormalised: relative to reference
//   reference  log2 units of the scaled score; -inf: nothing seen yet
//   sum        of p = 2^(score scale - reference), of this lane's tokens only until finish()
template <class Config>
struct RowState {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;

  float output[Traits::kDepthFragments][Traits::kRowTiles][4];
  float reference[Traits::kRowTiles][2];
  float sum[Traits::kRowTiles][2];
  ValueScales<Config> values;

  __device__ __forceinline__ void clear() {
    values.clear();
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < Traits::kDepthFragments; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          output[i][n][c] = 0.0f;
        }
      }
      reference[n][0] = reference[n][1] = -kInfinity;
      sum[n][0] = sum[n][1] = 0.0f;
    }
  }

  // Turns scores into probabilities in place and adds them up. The reference of a row may lag
  // behind its maximum by kLag, so that few stages need a rescaling of the output.
  __device__ __forceinline__ void update(float (&scores)[Traits::kRowTiles][4], float scale) {
    bool exceeded = false;
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        exceeded |= fmaxf(scores[n][c], scores[n][c + 2]) * scale > reference[n][c] + kLag;
      }
    }
    if (__any_sync(kWarp, exceeded)) {
      renew_reference(scores, scale);
    }
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        // A row that has seen nothing has only scores of -inf: 2^(-inf - 0) = 0.
        const float row = reference[n][c % 2];
        const float subtract = row == -kInfinity ? 0.0f : row;
        scores[n][c] = exp2_approximate(fmaf(scores[n][c], scale, -subtract));
        sum[n][c % 2] += scores[n][c];
      }
    }
  }

  // Turns probabilities into factors of the elements of V, in place.
  __device__ __forceinline__ void weigh(float (&p)[Traits::kRowTiles][4],
                                        const Unit<Config>& unit,
                                        int lane) {
    if constexpr (Traits::Kv::kHasPairs) {
      constexpr int kCentre = Expander<T, typename Config::Tkv>::kCentre;
      const auto first = ScaleZero<T>::template of<kCentre>(unit.value_pairs[lane / 4]);
      const auto second = ScaleZero<T>::template of<kCentre>(unit.value_pairs[lane / 4 + 8]);
      const float larger = fmaxf(first.scale, second.scale);
      if (__any_sync(kWarp, larger > values.unit * values.kUnitLag)) {
        renew_unit(larger);
      }
#pragma unroll
      for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const ScaleZero<T>& of_token = c < 2 ? first : second;
          values.zero_sum[n][c % 2] += p[n][c] * of_token.zero;
          p[n][c] *= of_token.scale * values.inverse;
        }
      }
    }
  }

  // Afterwards the rows are those of all the warp's tokens, in units of 1. `factor` is what an
  // element of V stands for where it is the same for all of them.
  __device__ __forceinline__ void finish(float factor) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sum[n][c] = added_up(sum[n][c]);
        if constexpr (Traits::Kv::kHasPairs) {
          scale_output(n, c, values.unit, added_up(values.zero_sum[n][c]));
        } else if constexpr (Traits::Kv::kIsQuantised) {
          scale_output(n, c, factor, 0.0f);
        }
      }
    }
  }

 private:
  // Over the lanes that have the same rows.
  __device__ __forceinline__ static float added_up(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      x += __shfl_xor_sync(kWarp, x, step);
    }
    return x;
  }

  __device__ __forceinline__ void scale_output(int n, int c, float factor, float summand) {
#pragma unroll
    for (int i = 0; i < Traits::kDepthFragments; ++i) {
      output[i][n][c] = fmaf(output[i][n][c], factor, summand);
      output[i][n][c + 2] = fmaf(output[i][n][c + 2], factor, summand);
    }
  }

  // unit' = the largest scale of the unit of tokens;  output *= unit / unit'
  __device__ __forceinline__ void renew_unit(float scale) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      scale = fmaxf(scale, __shfl_xor_sync(kWarp, scale, step));
    }
    const float inverse = __fdividef(1.0f, scale);  // 2^-126 or more
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      scale_output(n, 0, values.unit * inverse, 0.0f);
      scale_output(n, 1, values.unit * inverse, 0.0f);
    }
    values.unit = scale;
    values.inverse = inverse;
  }

  // reference' = max(reference, largest scaled score);  sum, output *= 2^(reference - reference')
  __device__ __forceinline__ void renew_reference(const float (&scores)[Traits::kRowTiles][4],
                                                  float scale) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float largest = fmaxf(scores[n][c], scores[n][c + 2]);
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, step));
        }
        const float renewed = fmaxf(reference[n][c], largest * scale);
        const float factor =
            exp2_approximate(reference[n][c] - (renewed == -kInfinity ? 0.0f : renewed));
        reference[n][c] = renewed;
        sum[n][c] *= factor;
        values.rescale(n, c, factor);
#pragma unroll
        for (int i = 0; i < Traits::kDepthFragments; ++i) {
          output[i][n][c] *= factor;
          output[i][n][c + 2] *= factor;
        }
      }
    }
  }
};

}  // namespace attn::sm80
