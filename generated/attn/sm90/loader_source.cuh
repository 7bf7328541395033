// SPDX-License-Identifier: Apache-2.0
// What the loader asks of whatever brings K and V.
#pragma once

#include "attn/sm90/barriers.cuh"

namespace attn::sm90 {

// TokenBoxes, BlockBoxes, GatheredRows and GatheredCodes. All threads of a source run the loader;
// where that is more than one thread, one leads: it loads Q and hands out the items. A source has
//
//   leads, in_leading_warp
//   signals        one thread of each warp, once all have read what the signal gives away
//   begin_tile     for the tile in a work slot
//   load_keys      K of the block prepared last
//   load_values    V of that block, or of the one before
//
// and what most need not:
struct LoaderSource {
  // Ahead of the wait for a free slot: where K and V of a block lie.
  __device__ __forceinline__ static void prepare(int /*block*/) {}

  // Behind the last block of K: the tile after this, if it is known.
  __device__ __forceinline__ static void look_ahead(int /*next_slot*/) {}

  // Until whoever reads has left the slot that is filled next.
  __device__ __forceinline__ static void wait_for_slot(const Barrier& empty, uint32_t phase) {
    empty.wait(phase);
  }
};

}  // namespace attn::sm90
