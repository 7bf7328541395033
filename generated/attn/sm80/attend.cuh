// SPDX-License-Identifier: Apache-2.0
// What a tile of keys adds to the rows of a warp:
//   S = Q K^T      P = 2^(S scale - reference)      sum += P 1      output += P V
// P is taken with the reference at hand, and once more with another if it turns out too large; or
// the reference is put right before.
// meanwhile() is called where registers are free and arithmetic is still to come.
#pragma once

#include "attn/sm80/scores.cuh"

namespace attn::sm80 {

// The whole tile in one step. One that asks for another reference is begun again: that costs less
// than to keep its scores until the reference is known to be good.
template <class Config, class Output, class Meanwhile>
__device__ __forceinline__ void attend_at_once(Output& output,
                                               SoftmaxOf<Config>& softmax,
                                               const QueryFragments<Config>& query,
                                               const PrefillStorage<Config>& storage,
                                               int key_tile,
                                               int warp,
                                               bool is_covered,
                                               Meanwhile meanwhile) {
  using Traits = PrefillTraits<Config>;
  Probabilities<Config> p;
  float sum[Traits::kRowFragments][2];
#pragma unroll 1
  for (bool renew = softmax.lacks_reference();; renew = true) {
    Scores<Config> scores;
    take_scores<Config>(scores, query, storage, key_tile, warp, is_covered);
    if (renew) {
      float largest[Traits::kRowFragments][2];
      softmax.take_largest(largest, scores, 0);
      softmax.renew_reference(largest, output);
    }
    softmax.template exponentials<typename Config::T>(p, sum, scores, 0);
    if (renew || softmax.are_within_limit(sum)) {
      break;
    }
  }
  softmax.add(sum);
  meanwhile();
  const int lane = opaque(threadIdx.x) % 32;
  const int slot = static_cast<unsigned>(key_tile) % Traits::kSlots;
  multiply_probability_value<Config>(output, p, storage.value[slot], 0, lane);
}

// 16 keys at a time. Each product with V stands behind the exponentials of the step after it, and
// hides them. A step that asks for another reference finds its scores at hand.
template <class Config, class Output, class Meanwhile>
__device__ __forceinline__ void attend_by_steps(Output& output,
                                                SoftmaxOf<Config>& softmax,
                                                const QueryFragments<Config>& query,
                                                const PrefillStorage<Config>& storage,
                                                int key_tile,
                                                int warp,
                                                bool is_covered,
                                                Meanwhile meanwhile) {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  Scores<Config> scores;
  take_scores<Config>(scores, query, storage, key_tile, warp, is_covered);
  meanwhile();

  const int lane = opaque(threadIdx.x) % 32;
  const int slot = static_cast<unsigned>(key_tile) % Traits::kSlots;
  Probabilities<Config> p[2];  // of a step, and of the one before
#pragma unroll
  for (int step = 0; step <= Traits::kKeyFragments; ++step) {
    float sum[Traits::kRowFragments][2];
    if (step < Traits::kKeyFragments) {
      softmax.template exponentials<T>(p[step % 2], sum, scores, step);
    }
    if (step > 0) {
      multiply_probability_value<Config>(
          output, p[(step - 1) % 2], storage.value[slot], step - 1, lane);
    }
    if (step < Traits::kKeyFragments) {
      if (!softmax.are_within_limit(sum)) {
        float largest[Traits::kRowFragments][2];
        softmax.take_largest(largest, scores, step);
        softmax.renew_reference(largest, output);
        softmax.template exponentials<T>(p[step % 2], sum, scores, step);
      }
      softmax.add(sum);
    }
  }
}

// The whole tile in one step, with a reference that is known to be good.
template <class Config, class Output, class Meanwhile>
__device__ __forceinline__ void attend_after_maximum(Output& output,
                                                     SoftmaxOf<Config>& softmax,
                                                     const QueryFragments<Config>& query,
                                                     const PrefillStorage<Config>& storage,
                                                     int key_tile,
                                                     int warp,
                                                     bool is_covered,
                                                     Meanwhile meanwhile) {
  using Traits = PrefillTraits<Config>;
  Scores<Config> scores;
  take_scores<Config>(scores, query, storage, key_tile, warp, is_covered);
  meanwhile();
  float largest[Traits::kRowFragments][2];
  softmax.take_largest_of_lane(largest, scores, 0);
  if (softmax.lags_behind(largest)) {
    softmax.take_largest_of_row(largest);
    softmax.renew_reference(largest, output);
  }
  Probabilities<Config> p;
  float sum[Traits::kRowFragments][2];
  softmax.template exponentials<typename Config::T>(p, sum, scores, 0);
  softmax.add(sum);
  const int lane = opaque(threadIdx.x) % 32;
  const int slot = static_cast<unsigned>(key_tile) % Traits::kSlots;
  multiply_probability_value<Config>(output, p, storage.value[slot], 0, lane);
}

template <class Config, class Output, class Meanwhile>
__device__ __forceinline__ void attend(Output& output,
                                       SoftmaxOf<Config>& softmax,
                                       const QueryFragments<Config>& query,
                                       const PrefillStorage<Config>& storage,
                                       int key_tile,
                                       int warp,
                                       bool is_covered,
                                       Meanwhile meanwhile) {
  using Form = typename PrefillTraits<Config>::Form;
  constexpr Form kForm = PrefillTraits<Config>::kForm;
  if constexpr (kForm == Form::kAtOnce) {
    attend_at_once<Config>(output, softmax, query, storage, key_tile, warp, is_covered, meanwhile);
  } else if constexpr (kForm == Form::kBySteps) {
    attend_by_steps<Config>(output, softmax, query, storage, key_tile, warp, is_covered, meanwhile);
  } else {
    attend_after_maximum<Config>(
        output, softmax, query, storage, key_tile, warp, is_covered, meanwhile);
  }
}

}  // namespace attn::sm80
