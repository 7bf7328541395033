// SPDX-License-Identifier: Apache-2.0
// What a tile of keys adds to the rows of a warp:
//   S = Q K^T      P = 2^(S scale - reference)      sum += P 1      output += P V
// P is taken with the reference at hand, and once more with another if it turns out too large; or
// the reference is put right before.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm80/mask.cuh"
#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/products.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

template <class Config>
using SoftmaxOf = OnlineSoftmax<PrefillTraits<Config>::kRowFragments>;

// A tile of keys as a warp sees it. is_covered: its rows see all of them.
struct SeenTile {
  int index;
  int warp;
  bool is_covered;
};

// The rows of a warp, to which tiles of keys are added.
template <class Config>
class WarpRows {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  using Form = typename Traits::Form;
  using Output = float[Traits::kRowFragments][2 * Traits::kValueFragments][4];

 public:
  __device__ __forceinline__ WarpRows(Output& output,
                                      SoftmaxOf<Config>& softmax,
                                      const QueryFragments<Config>& query,
                                      const PrefillStorage<Config>& storage)
      : output_(output), softmax_(softmax), query_(query), storage_(storage) {}

  // meanwhile() is called where registers are free and arithmetic is still to come.
  template <class Meanwhile>
  __device__ __forceinline__ void attend(SeenTile tile, Meanwhile meanwhile) const {
    if constexpr (Traits::kForm == Form::kAtOnce) {
      attend_at_once(tile, meanwhile);
    } else if constexpr (Traits::kForm == Form::kBySteps) {
      attend_by_steps(tile, meanwhile);
    } else {
      attend_after_maximum(tile, meanwhile);
    }
  }

 private:
  using RowValues = float[Traits::kRowFragments][2];
  using Scores = float[Traits::kRowFragments][2 * Traits::kKeyFragments][4];
  // The A operands of a step.
  using Probabilities = uint32_t[Traits::kStepFragments][Traits::kRowFragments][4];

  // The whole tile in one step. One that asks for another reference is begun again: that costs less
  // than to keep its scores until the reference is known to be good.
  template <class Meanwhile>
  __device__ __forceinline__ void attend_at_once(SeenTile tile, Meanwhile meanwhile) const {
    Probabilities p;
    RowValues sum;
#pragma unroll 1
    for (bool renew = softmax_.lacks_reference();; renew = true) {
      Scores scores;
      take_scores(scores, tile);
      if (renew) {
        RowValues largest;
        softmax_.take_largest(largest, scores, 0);
        softmax_.renew_reference(largest, output_);
      }
      softmax_.template exponentials<T>(p, sum, scores, 0);
      if (renew || softmax_.are_within_limit(sum)) {
        break;
      }
    }
    softmax_.add(sum);
    meanwhile();
    add_values(p, tile, 0, recomputed(threadIdx.x) % 32);
  }

  // 16 keys at a time. Each product with V stands behind the exponentials of the step after it, and
  // hides them. A step that asks for another reference finds its scores at hand.
  template <class Meanwhile>
  __device__ __forceinline__ void attend_by_steps(SeenTile tile, Meanwhile meanwhile) const {
    Scores scores;
    take_scores(scores, tile);
    meanwhile();

    const int lane = recomputed(threadIdx.x) % 32;
    Probabilities p[2];  // of a step, and of the one before
#pragma unroll
    for (int step = 0; step <= Traits::kKeyFragments; ++step) {
      RowValues sum;
      if (step < Traits::kKeyFragments) {
        softmax_.template exponentials<T>(p[step % 2], sum, scores, step);
      }
      if (step > 0) {
        add_values(p[(step - 1) % 2], tile, step - 1, lane);
      }
      if (step < Traits::kKeyFragments) {
        if (!softmax_.are_within_limit(sum)) {
          RowValues largest;
          softmax_.take_largest(largest, scores, step);
          softmax_.renew_reference(largest, output_);
          softmax_.template exponentials<T>(p[step % 2], sum, scores, step);
        }
        softmax_.add(sum);
      }
    }
  }

  // The whole tile in one step, with a reference that is known to be good.
  template <class Meanwhile>
  __device__ __forceinline__ void attend_after_maximum(SeenTile tile, Meanwhile meanwhile) const {
    Scores scores;
    take_scores(scores, tile);
    meanwhile();
    RowValues largest;
    softmax_.take_largest_of_lane(largest, scores, 0);
    if (softmax_.lags_behind(largest)) {
      softmax_.take_largest_of_row(largest);
      softmax_.renew_reference(largest, output_);
    }
    Probabilities p;
    RowValues sum;
    softmax_.template exponentials<T>(p, sum, scores, 0);
    softmax_.add(sum);
    add_values(p, tile, 0, recomputed(threadIdx.x) % 32);
  }

  // S, -inf where a query does not see a key.
  __device__ __forceinline__ void take_scores(Scores& scores, SeenTile tile) const {
    const int lane = recomputed(threadIdx.x) % 32;  // fragment addresses are recomputed, not kept
    multiply_query_key<Config>(scores, query_, storage_, slot_of(tile), tile.warp, lane);
    if (!tile.is_covered) {
      mask_scores<Config>(scores, storage_.work, tile.index * Traits::kCtaS, tile.warp, lane);
    }
  }

  // output += P V of the keys of a step.
  __device__ __forceinline__ void add_values(const Probabilities& p,
                                             SeenTile tile,
                                             int step,
                                             int lane) const {
    multiply_probability_value<Config>(output_, p, storage_.value[slot_of(tile)], step, lane);
  }

  __device__ __forceinline__ static int slot_of(SeenTile tile) {
    return static_cast<unsigned>(tile.index) % Traits::kSlots;
  }

  Output& output_;
  SoftmaxOf<Config>& softmax_;
  const QueryFragments<Config>& query_;
  const PrefillStorage<Config>& storage_;
};

}  // namespace attn::sm80
