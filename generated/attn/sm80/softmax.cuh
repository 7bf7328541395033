// SPDX-License-Identifier: Apache-2.0
// Softmax over keys that arrive tile by tile, on the accumulators of mma.m16n8k16.
#pragma once

#include "attn/sm80/instructions.cuh"

namespace attn::sm80 {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);

// A row's exponentials are taken relative to a reference that may lag behind its true maximum by up
// to this many powers of two: 2^8 stays exact enough in f16 and bf16, and most tiles then need no
// rescaling of the output.
constexpr float kLag = 8.0f;

// The largest (sum) of a value over the four lanes that share a row of accumulators.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The state of the rows that a lane holds: fragment f, half h is row f * 16 + h * 8 + lane / 4 of
// the warp.
//   reference  log2 units of the scaled score: p = 2^(score * scale - reference); -inf: none yet
//   sum        of p, of this lane's columns only until finish()
template <int kRowFragments>
struct OnlineSoftmax {
  float reference[kRowFragments][2];
  float sum[kRowFragments][2];
  float scale;  // softmax scale * log2(e), above 0

  __device__ __forceinline__ explicit OnlineSoftmax(float softmax_scale)
      : scale(softmax_scale * kLog2E) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        reference[f][h] = -kInfinity;
        sum[f][h] = 0.0f;
      }
    }
  }

  // Turns the scores of one tile into probabilities in place, adds them to `sum`, and rescales
  // `output` where the reference of a row had to move.
  template <int kScoreColumns, int kOutputColumns>
  __device__ __forceinline__ void update(float (&scores)[kRowFragments][kScoreColumns][4],
                                         float (&output)[kRowFragments][kOutputColumns][4]) {
    float tile_max[kRowFragments][2];
    bool exceeded = false;
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        tile_max[f][h] = fmaxf(scores[f][0][2 * h], scores[f][0][2 * h + 1]);
#pragma unroll
        for (int n = 1; n < kScoreColumns; ++n) {
          tile_max[f][h] =
              fmaxf(tile_max[f][h], fmaxf(scores[f][n][2 * h], scores[f][n][2 * h + 1]));
        }
        exceeded |= tile_max[f][h] * scale > reference[f][h] + kLag;
      }
    }
    if (__any_sync(0xffffffffu, exceeded)) {
      renew_reference(tile_max, output);
    }
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // A row that has seen nothing has only scores of -inf: 2^(-inf - 0) = 0.
        const float subtract = reference[f][h] == -kInfinity ? 0.0f : reference[f][h];
#pragma unroll
        for (int n = 0; n < kScoreColumns; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& score = scores[f][n][2 * h + c];
            score = exp2_approximate(fmaf(score, scale, -subtract));
            sum[f][h] += score;
          }
        }
      }
    }
  }

  // Completes the sums. Afterwards sum is that of the whole row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[f][h] = row_sum(sum[f][h]);
      }
    }
  }

  // Natural log of the sum of exponentials of the scaled scores; -inf for a row that has seen
  // nothing.
  __device__ __forceinline__ float log_sum_exp(int f, int h) const {
    return sum[f][h] > 0.0f ? (reference[f][h] + __log2f(sum[f][h])) * kLn2 : -kInfinity;
  }

 private:
  // reference' = max(reference, largest scaled score);  sum, output *= 2^(reference - reference')
  template <int kOutputColumns>
  __device__ __forceinline__ void renew_reference(
      const float (&tile_max)[kRowFragments][2],
      float (&output)[kRowFragments][kOutputColumns][4]) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float renewed = fmaxf(reference[f][h], row_max(tile_max[f][h]) * scale);
        const float subtract = renewed == -kInfinity ? 0.0f : renewed;
        const float factor = exp2_approximate(reference[f][h] - subtract);
        reference[f][h] = renewed;
        sum[f][h] *= factor;
#pragma unroll
        for (int n = 0; n < kOutputColumns; ++n) {
          output[f][n][2 * h] *= factor;
          output[f][n][2 * h + 1] *= factor;
        }
      }
    }
  }
};

}  // namespace attn::sm80
