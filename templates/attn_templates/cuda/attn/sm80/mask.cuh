// SPDX-License-Identifier: Apache-2.0
// Hides the keys of a tile that a query does not see.
#pragma once

#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// score = -inf where the query of the row does not see the key of the column
template <class Config, class Scores>
__device__ __forceinline__ void mask_scores(Scores& scores,
                                            const Work<typename PrefillTraits<Config>::Cache>& work,
                                            int first_key,
                                            int warp,
                                            int lane) {
  using Traits = PrefillTraits<Config>;
  const int origin = first_key + lane % 4 * 2;  // key of this lane's column 0
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int query =
          work.tile.first_query + warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      const int end = work.visible.end(query) - origin;
#pragma unroll
      for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[f][n][2 * h + c];
          score = n * 8 + c < end ? score : -kInfinity;
        }
      }
      if (work.visible.window > 0) {
        const int begin = work.visible.first(query) - origin;
#pragma unroll
        for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& score = scores[f][n][2 * h + c];
            score = n * 8 + c >= begin ? score : -kInfinity;
          }
        }
      }
    }
  }
}

}  // namespace attn::sm80
