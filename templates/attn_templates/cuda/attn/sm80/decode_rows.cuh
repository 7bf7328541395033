// SPDX-License-Identifier: Apache-2.0
// What a decode warp keeps of its rows from stage to stage: the online softmax and the output.
#pragma once

#include "attn/sm80/decode_codes.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// Scores, then probabilities, of the units that take a step together: [units, row tiles, 4].
template <class Config>
using Scores = float[DecodeTraits<Config>::kTogether][DecodeTraits<Config>::kRowTiles][4];

// What a warp has of its rows.
//   output     [columns x rows], unnormalised: relative to reference
//   reference  log2 units of the scaled score; -inf: nothing seen yet
//   sum        of p = 2^(score scale - reference), of this lane's tokens only until finish()
template <class Config>
struct RowState {
  using Traits = DecodeTraits<Config>;

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
  // behind its maximum by kLag, so that few stages need a rescaling of the output. `pairs`: of the
  // tokens.
  __device__ __forceinline__ void update(Scores<Config>& scores,
                                         float scale,
                                         const StepPairs<Config>& pairs) {
    bool exceeded = values.exceeded_by(pairs);
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        exceeded |= largest_of_lane(scores, n, c) * scale > reference[n][c] + kLag;
      }
    }
    if (__any_sync(kWarp, exceeded)) {
      renew_unit(pairs);
      renew_reference(scores, scale);
    }
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        // A row that has seen nothing has only scores of -inf: 2^(-inf - 0) = 0.
        const float row = reference[n][c];
        const float subtract = row == -kInfinity ? 0.0f : row;
#pragma unroll
        for (int unit = 0; unit < Traits::kTogether; ++unit) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[unit][n][2 * i + c];
            score = exp2_approximate(fmaf(score, scale, -subtract));
            sum[n][c] += score;
          }
        }
      }
    }
  }

  // Takes the centre of the codes of V off what has been added up so far.
  __device__ __forceinline__ void settle() {
    if constexpr (Traits::Kv::kHasPairs) {
#pragma unroll
      for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float centre = Code::kCentre * values.weights[n][c];
          values.weights[n][c] = 0.0f;
#pragma unroll
          for (int i = 0; i < Traits::kDepthFragments; ++i) {
            output[i][n][c] = fmaf(centre, -centre_unit(i), output[i][n][c]);
            output[i][n][c + 2] = fmaf(centre, -centre_unit(i), output[i][n][c + 2]);
          }
        }
      }
    }
  }

  // Afterwards the rows are those of all the warp's tokens, in units of 1. `factor` is what an
  // element of V stands for where it is the same for all of them.
  __device__ __forceinline__ void finish(float factor) {
    settle();
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sum[n][c] = added_up(sum[n][c]);
        if constexpr (Traits::Kv::kIsQuantised) {
          float summand = 0.0f;
          if constexpr (Traits::Kv::kHasPairs) {
            factor = values.unit;
            summand = added_up(values.zero_sum[n][c]);
          }
#pragma unroll
          for (int i = Traits::kDepthFragments - 1; i >= 0; --i) {
            if (is_sum(i)) {
              output[i][n][c] -= output[i - 1][n][c];
              output[i][n][c + 2] -= output[i - 1][n][c + 2];
            }
            const float by = factor * (1.0f / element_unit(i));
            output[i][n][c] = fmaf(output[i][n][c], by, summand);
            output[i][n][c + 2] = fmaf(output[i][n][c + 2], by, summand);
          }
        }
      }
    }
  }

 private:
  using Code = Halves<typename Config::Tkv>;

  // What a code of 1 is as an element of fragment i of the output.
  __device__ __forceinline__ static constexpr float element_unit(int i) {
    return i % 2 == 0 ? Code::kUnit : Code::kUnit * Code::kOdd;
  }

  // Whether fragment i has been added up together with the one before.
  __device__ __forceinline__ static constexpr bool is_sum(int i) {
    return Code::kOddAreSums && i % 2 == 1;
  }

  // What the middle of all codes is there, in such.
  __device__ __forceinline__ static constexpr float centre_unit(int i) {
    return element_unit(i) + (is_sum(i) ? element_unit(i - 1) : 0.0f);
  }

  // Over the lanes that have the same rows.
  __device__ __forceinline__ static float added_up(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      x += __shfl_xor_sync(kWarp, x, step);
    }
    return x;
  }

  __device__ __forceinline__ static float largest_of_lanes(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      x = fmaxf(x, __shfl_xor_sync(kWarp, x, step));
    }
    return x;
  }

  // Of a row's scores in a step.
  __device__ __forceinline__ static float largest_of_lane(const Scores<Config>& scores,
                                                          int n,
                                                          int c) {
    float largest = fmaxf(scores[0][n][c], scores[0][n][c + 2]);
#pragma unroll
    for (int unit = 1; unit < Traits::kTogether; ++unit) {
      largest = fmaxf(largest, fmaxf(scores[unit][n][c], scores[unit][n][c + 2]));
    }
    return largest;
  }

  // Where the scales ask for it:  unit' = the largest of them;  output, weights *= unit / unit'
  __device__ __forceinline__ void renew_unit(const StepPairs<Config>& pairs) {
    if constexpr (Traits::Kv::kHasPairs) {
      const float largest = largest_of_lanes(pairs.largest_scale());
      if (largest <= values.unit * values.kUnitLag) {
        return;
      }
      const float inverse = __fdividef(1.0f, largest);  // 2^-126 or more
      rescale_output(values.unit * inverse);
      values.unit = largest;
      values.inverse = inverse;
    }
  }

  __device__ __forceinline__ void rescale_output(float factor) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        values.weights[n][c] *= factor;
#pragma unroll
        for (int i = 0; i < Traits::kDepthFragments; ++i) {
          output[i][n][c] *= factor;
          output[i][n][c + 2] *= factor;
        }
      }
    }
  }

  // reference' = max(reference, largest scaled score);  sum, output *= 2^(reference - reference')
  __device__ __forceinline__ void renew_reference(const Scores<Config>& scores, float scale) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float largest = largest_of_lanes(largest_of_lane(scores, n, c));
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
