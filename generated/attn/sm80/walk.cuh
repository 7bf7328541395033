// SPDX-License-Identifier: Apache-2.0
// The walk of a CTA over its tiles of keys, from the last to the first.
#pragma once

#include "attn/sm80/attend.cuh"
#include "attn/sm80/tile_copies.cuh"

namespace attn::sm80 {

// Zeros the first `rows` rows of V in a tile, or of what becomes V: in front of a window, where no
// query sees them, they may hold NaN, and 0 * NaN would spoil the output. (K may be anything there:
// its scores are masked.)
template <class Config>
__device__ __forceinline__ void clear_values(PrefillStorage<Config>& storage, int tile, int rows) {
  using Traits = PrefillTraits<Config>;
  const auto clear = [&](auto& values) {
    const uint32_t first = shared_address(&values);
    const int end = rows * values.kPitchBytes;
#pragma unroll 1
    for (int at = recomputed(threadIdx.x) * 16; at < end; at += Traits::kThreads * 16) {
      store_16(first + at, uint4{0, 0, 0, 0});
    }
  };
  if constexpr (Traits::Kv::kIsQuantised) {
    clear(storage.value_codes);
    if constexpr (Traits::Kv::kHasPairs) {
      if (threadIdx.x < rows) {
        storage.value_pairs[threadIdx.x] = 0;
      }
    }
  } else {
    clear(storage.value[static_cast<unsigned>(tile) % Traits::kSlots]);
  }
}

// The range must have keys. Q is on its way to storage.query.
template <class Config, class Output>
__device__ __forceinline__ void walk_over_keys(Output& output,
                                               SoftmaxOf<Config>& softmax,
                                               PrefillStorage<Config>& storage,
                                               const AttentionParams<typename Config::T>& params) {
  using Traits = PrefillTraits<Config>;
  const auto& work = storage.work;
  const int last_tile = work.keys.end - 1;

  // 1. Start the copies of as many tiles as the ring holds but one.
  const TileStream<Config> stream(storage, params);
  auto entry = stream.look_up(last_tile);
#pragma unroll
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    stream.copy(last_tile - stage, entry);
    entry = stream.look_up(last_tile - stage - 1);
  }
  copy_async_wait<Traits::kStages - 2>();
  __syncthreads();  // Q is visible to all warps
  QueryFragments<Config> query;
  query.load(storage.query, threadIdx.x / 32, threadIdx.x % 32);
  const WarpRows<Config> rows(output, softmax, query, storage);

  // 2. From the last tile to the first, before which a window may make a stop.
  int key_tile = last_tile;
  for (bool is_cleared = false;; is_cleared = true) {
#pragma unroll 1
    for (; key_tile >= work.whole_begin || is_cleared && key_tile >= work.keys.begin; --key_tile) {
      const int warp = threadIdx.x / 32;
      const WarpKeys seen = storage.seen[warp];  // here, because the barrier hides its latency
      copy_async_wait<Traits::kStages - 2>();
      __syncthreads();  // this tile is visible to all, and all have left the slot filled next
      if constexpr (Traits::Kv::kIsQuantised) {
        expand_tiles<Traits>(storage);
        __syncthreads();  // the tiles of T are visible to all, and their codes may be overwritten
      }
      const int next_copied = key_tile - (Traits::kStages - 1);
      if constexpr (Traits::kCopiesBehindScores) {
        entry = stream.look_up(next_copied);
      } else {
        stream.copy(next_copied, entry);
      }
      const auto meanwhile = [&] {
        if constexpr (Traits::kCopiesBehindScores) {
          stream.copy(next_copied, entry);
        } else {
          entry = stream.look_up(next_copied - 1);
        }
      };

      const int first_key = key_tile * Traits::kCtaS;
      const int end_key = first_key + Traits::kCtaS;
      if (seen.touch(first_key, end_key)) {
        rows.attend({key_tile, warp, seen.cover(first_key, end_key)}, meanwhile);
      } else {
        meanwhile();
      }
    }
    if (key_tile < work.keys.begin) {
      return;
    }
    copy_async_wait<Traits::kStages - 2>();
    __syncthreads();  // nothing more lands in this tile
    clear_values<Config>(storage, key_tile, work.first_key - key_tile * Traits::kCtaS);
  }
}

}  // namespace attn::sm80
