// SPDX-License-Identifier: Apache-2.0
// Softmax over keys that arrive tile by tile, on the accumulators of mma.m16n8k16.
#pragma once

#include "attn/sm80/instructions.cuh"

namespace attn::sm80 {

// The reference of a row that has seen no key: below every score that is a number.
constexpr float kNoReference = -3.402823466e38f;

// Powers of two by which a reference may lag behind the maximum, where the maximum is at hand.
constexpr float kLag = 8.0f;

// What the exponentials of a step may sum up to in one lane. The reference of a row may lag so far
// behind its true maximum: f16 holds such a term, and both types hold what is small beside it.
constexpr float kSumLimit = 16384.0f;

// The state of the rows that a lane holds: fragment f, half h is row f * 16 + h * 8 + lane / 4 of
// the warp.
//   reference  log2 units of the scaled score: p = 2^(score * scale - reference)
//   sum        of p, of this lane's columns only until finish()
// Keys come in steps, of a tile or of part of one. The reference is the maximum up to some step;
// later steps keep it as long as their sums stay below kSumLimit, which nearly all do: they need no
// maximum, and no rescaling of the output. Exponentials that overflow are infinite, so their sum
// tells.
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
        reference[f][h] = kNoReference;
        sum[f][h] = 0.0f;
      }
    }
  }

  // p = 2^(score * scale - reference) of kFragments times 16 keys from fragment `first` on, rounded
  // and packed: the accumulator layout of the scores, in pairs, is the A operand of the next
  // product. step_sum is the sum over this lane's columns.
  template <class T, int kFragments, int kScoreColumns>
  __device__ __forceinline__ void exponentials(
      uint32_t (&p)[kFragments][kRowFragments][4],
      float (&step_sum)[kRowFragments][2],
      const float (&scores)[kRowFragments][kScoreColumns][4],
      int first) const {
#pragma unroll
    for (int k = 0; k < kFragments; ++k) {
#pragma unroll
      for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int h = i % 2;
          const float (&score)[4] = scores[f][2 * (first + k) + i / 2];
          const float low = exp2_approximate(fmaf(score[2 * h], scale, -reference[f][h]));
          const float high = exp2_approximate(fmaf(score[2 * h + 1], scale, -reference[f][h]));
          step_sum[f][h] = k == 0 && i < 2 ? low + high : step_sum[f][h] + low + high;
          p[k][f][i] = pack(low, high, T{});
        }
      }
    }
  }

  // Whether some row of the warp has seen no key.
  __device__ __forceinline__ bool lacks_reference() const {
    float least = reference[0][0];
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
      least = fminf(least, fminf(reference[f][0], reference[f][1]));
    }
    return __any_sync(0xffffffffu, least == kNoReference);
  }

  // Whether the references of the warp's rows are good for a step with these sums. NaN is not below
  // any limit.
  __device__ __forceinline__ static bool are_within_limit(
      const float (&step_sum)[kRowFragments][2]) {
    bool all = true;
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
      all = all && step_sum[f][0] < kSumLimit && step_sum[f][1] < kSumLimit;
    }
    return __all_sync(0xffffffffu, all);
  }

  // The largest score of each row from fragment `first` on.
  template <int kScoreColumns>
  __device__ __forceinline__ static void take_largest(
      float (&largest)[kRowFragments][2],
      const float (&scores)[kRowFragments][kScoreColumns][4],
      int first) {
    take_largest_of_lane(largest, scores, first);
    take_largest_of_row(largest);
  }

  // The same among the columns of this lane.
  template <int kScoreColumns>
  __device__ __forceinline__ static void take_largest_of_lane(
      float (&largest)[kRowFragments][2],
      const float (&scores)[kRowFragments][kScoreColumns][4],
      int first) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        largest[f][h] = -kInfinity;
#pragma unroll
        for (int n = 2 * first; n < kScoreColumns; ++n) {
          largest[f][h] = fmaxf(largest[f][h], fmaxf(scores[f][n][2 * h], scores[f][n][2 * h + 1]));
        }
      }
    }
  }

  // From the largest of each lane.
  __device__ __forceinline__ static void take_largest_of_row(float (&largest)[kRowFragments][2]) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        largest[f][h] = row_max(largest[f][h]);
      }
    }
  }

  // Whether some reference of the warp's rows lies kLag below these scores.
  __device__ __forceinline__ bool lags_behind(const float (&largest)[kRowFragments][2]) const {
    bool any = false;
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        any = any || largest[f][h] * scale > reference[f][h] + kLag;
      }
    }
    return __any_sync(0xffffffffu, any);
  }

  // reference' = max(reference, largest * scale);  sum, output *= 2^(reference - reference')
  template <int kOutputColumns>
  __device__ __forceinline__ void renew_reference(
      const float (&largest)[kRowFragments][2], float (&output)[kRowFragments][kOutputColumns][4]) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float renewed = fmaxf(reference[f][h], largest[f][h] * scale);
        const float factor = exp2_approximate(reference[f][h] - renewed);
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

  __device__ __forceinline__ void add(const float (&step_sum)[kRowFragments][2]) {
#pragma unroll
    for (int f = 0; f < kRowFragments; ++f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[f][h] += step_sum[f][h];
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

  // The reference as others may use it; -inf for a row that has seen nothing.
  __device__ __forceinline__ float known_reference(int f, int h) const {
    return sum[f][h] > 0.0f ? reference[f][h] : -kInfinity;
  }

  // Natural log of the sum of exponentials of the scaled scores; -inf for a row that has seen
  // nothing.
  __device__ __forceinline__ float log_sum_exp(int f, int h) const {
    return (known_reference(f, h) + __log2f(sum[f][h])) * kLn2;
  }
};

}  // namespace attn::sm80
