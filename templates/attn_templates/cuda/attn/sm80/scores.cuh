// SPDX-License-Identifier: Apache-2.0
// The scores of a tile of keys, and the shapes of what a warp makes of them.
#pragma once

#include "attn/sm80/mask.cuh"
#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/products.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

template <class Config>
using SoftmaxOf = OnlineSoftmax<PrefillTraits<Config>::kRowFragments>;

template <class Config>
using Scores =
    float[PrefillTraits<Config>::kRowFragments][2 * PrefillTraits<Config>::kKeyFragments][4];

// The A operands of a step.
template <class Config>
using Probabilities =
    uint32_t[PrefillTraits<Config>::kStepFragments][PrefillTraits<Config>::kRowFragments][4];

// S, -inf where a query does not see a key. is_covered: all see all of them.
template <class Config>
__device__ __forceinline__ void take_scores(Scores<Config>& scores,
                                            const QueryFragments<Config>& query,
                                            const PrefillStorage<Config>& storage,
                                            int key_tile,
                                            int warp,
                                            bool is_covered) {
  using Traits = PrefillTraits<Config>;
  const int slot = static_cast<unsigned>(key_tile) % Traits::kSlots;
  const int lane = opaque(threadIdx.x) % 32;  // fragment addresses are recomputed, not kept
  multiply_query_key<Config>(scores, query, storage, slot, warp, lane);
  if (!is_covered) {
    mask_scores<Config>(scores, storage.work, key_tile * Traits::kCtaS, warp, lane);
  }
}

}  // namespace attn::sm80
