// SPDX-License-Identifier: Apache-2.0
// Which tiles a CTA computes: all CTAs take them from a counter one by one, in the order of
// TileOrder.
#pragma once

#include "attn/key_range.cuh"
#include "attn/sm90/empty_tiles.cuh"
#include "attn/sm90/mask.cuh"
#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/tile_order.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// Takes a number from the counter. One is taken for each claim, `claims` in all; the last resets
// the counter.
__device__ __forceinline__ int claim(int* counter, int claims) {
  int claimed = 0;
  if (threadIdx.x % 32 == 0) {
    claimed = atomicAdd(counter, 1);
    if (claimed == claims - 1) {
      *counter = 0;
    }
  }
  return warp_uniform(claimed);
}

// What most calls are: one rank has all keys, queries stand at their end, no window hides any, and
// no tile is split. The way to a tile is a third as long then, and a CTA's first tile waits for it.
template <class T>
__device__ __forceinline__ bool is_plain(const Arguments<T>& arguments) {
  const AttentionParams<T>& params = arguments.params;
  return params.cp_size == 1 && params.window_size == 0 && params.offset_q == nullptr &&
         arguments.plan.split_cnt == 1 && arguments.plan.split_tiles == 0;
}

// What there is to do for a tile. kPlain: of a call that is_plain.
template <class Traits, bool kPlain>
class Assignment {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ Assignment(const Arguments<T>& arguments, const PlacedTile& tile)
      : arguments_(arguments),
        params_(arguments.params),
        plan_(arguments.plan),
        tile_(tile),
        visible_(visible(params_, tile)),
        whole_(tiles_of(visible_.any(tile.first_query, tile.first_query + tile.rows - 1),
                        Traits::kCtaS)),
        mine_(kPlain ? whole_ : split_range(whole_.begin, whole_.end, plan_, tile.split)) {}

  // No query of the tile sees a key.
  __device__ __forceinline__ bool is_empty() const { return whole_.begin >= whole_.end; }

  // The tile's split has keys.
  __device__ __forceinline__ bool has_keys() const { return mine_.begin < mine_.end; }

  // Writes it down, but for what its rows see. By one thread.
  __device__ __forceinline__ void write(Work<Traits::kRowGroups>& work) const {
    const bool leaves_partial =
        !kPlain && (params_.cp_size > 1 || split_count(whole_.begin, whole_.end, plan_) > 1);
    work.item.first_block = mine_.begin;
    work.item.end_block = end_block();
    work.item.end_key = mine_.end * Traits::kCtaS;
    work.item.first_query = tile_.first_query;
    work.item.q_len = tile_.q_len;
    work.item.k_len = visible_.k_len;
    work.item.origin = visible_.origin;
    work.item.chunk = visible_.shards.chunk;
    work.item.head = tile_.head;
    work.item.first_token = tile_.first_token;
    work.item.split = leaves_partial ? tile_.split : kWholeRow;
    work.sequence = tile_.sequence;
    work.key_token = tile_.key_token;
    work.kv_head = kv_head();
  }

  // What its rows see. By a whole warp: one lane for each row group finds it, and one lane writes
  // everything, so that its arrival at a barrier covers every byte.
  __device__ __forceinline__ void write_seen(Work<Traits::kRowGroups>& work) const {
    const int lane = threadIdx.x % 32;
    const SeenBlocks own = seen_blocks(min(lane, Traits::kRowGroups - 1));
    SeenBlocks seen[Traits::kRowGroups];
#pragma unroll
    for (int group = 0; group < Traits::kRowGroups; ++group) {
      seen[group] = of_lane(own, group);
    }
    if (elect_one()) {
#pragma unroll
      for (int group = 0; group < Traits::kRowGroups; ++group) {
        work.seen[group] = seen[group];
      }
    }
  }

 private:
  __device__ __forceinline__ static VisibleKeys visible(const AttentionParams<T>& params,
                                                        const PlacedTile& tile) {
    constexpr bool kCausal = Traits::Config::kMask == Mask::kCausal;
    if constexpr (kPlain) {
      const int keys = tile.sequence_keys;
      return {keys - tile.q_len, keys, 0, kCausal, {1, 0, 1, false}};
    } else {
      return visible_keys(params, tile.sequence, tile.q_len, tile.sequence_keys, kCausal);
    }
  }

  __device__ __forceinline__ static SeenBlocks of_lane(const SeenBlocks& seen, int lane) {
    return {__shfl_sync(0xffffffffu, seen.last, lane),
            {__shfl_sync(0xffffffffu, seen.unmasked.begin, lane),
             __shfl_sync(0xffffffffu, seen.unmasked.end, lane)}};
  }

  __device__ __forceinline__ int kv_head() const {
    return quotient(tile_.pack, arguments_.group_packs);
  }

  // Every key group takes as many blocks as every other, so that they keep step.
  __device__ __forceinline__ int end_block() const {
    const int rounds = (mine_.end - mine_.begin + Traits::kKeyGroups - 1) / Traits::kKeyGroups;
    return mine_.begin + rounds * Traits::kKeyGroups;
  }

  // What the rows of a row group see of mine_; where none of them exists, what the first would.
  __device__ __forceinline__ SeenBlocks seen_blocks(int row_group) const {
    const PackedRows packed = packed_rows(arguments_);
    const int first_row = row_group * Traits::kConsumerRows;
    const int rows = min(max(packed.rows(tile_.rows) - first_row, 1), Traits::kConsumerRows);
    const int first_query = tile_.first_query + packed.token(first_row);
    const int last_query = tile_.first_query + packed.token(first_row + rows - 1);
    const int last = (visible_.end(last_query) - 1) / Traits::kCtaS;
    return {min(max(last, mine_.begin), mine_.end - 1),
            unmasked_blocks(visible_.all(first_query, last_query), Traits::kCtaS, mine_)};
  }

  const Arguments<T>& arguments_;
  const AttentionParams<T>& params_;
  const TilePlan& plan_;
  const PlacedTile& tile_;
  const VisibleKeys visible_;
  const TileRange whole_;  // key blocks that some query of the tile sees
  const TileRange mine_;   // those of the tile's split
};

// Hands a tile to the loader, and waits until it asks for the next. False where there is nothing to
// hand over: a tile that sees no key is written here, because nobody else meets it.
template <bool kPlain, class Traits>
__device__ __forceinline__ bool assign(SharedStorage<Traits>& storage,
                                       const Arguments<typename Traits::T>& arguments,
                                       const PlacedTile& tile,
                                       uint32_t phase) {
  const Assignment<Traits, kPlain> assignment(arguments, tile);
  if (!assignment.has_keys()) {
    if (assignment.is_empty() && tile.split == 0) {
      write_empty_tile<Traits>(arguments, tile);
    }
    return false;
  }
  Work<Traits::kRowGroups>& work = storage.work[phase];
  if constexpr (Traits::kSeenApart) {
    if (elect_one()) {
      assignment.write(work);
      storage.work_full.arrive();
    }
    // The loader asks for K and Q meanwhile. It waits for what the rows see of a slot before it
    // asks for the work that takes the slot next: one phase is never run past.
    assignment.write_seen(work);
    if (elect_one()) {
      storage.work_seen[phase].arrive();
    }
  } else {
    assignment.write_seen(work);
    if (elect_one()) {
      assignment.write(work);
      storage.work_full.arrive();
    }
  }
  storage.work_empty.wait(phase);  // the loader asks for the next, and has left the other slot
  return true;
}

// Whether the tiles of a plain call are taken in runs. Without a mask, where the products bind,
// only few tiles that see the same keys gain (measured on an H200).
template <class Traits>
__device__ __forceinline__ bool takes_runs(const Arguments<typename Traits::T>& arguments) {
  constexpr int kMostRows = Traits::Config::kMask == Mask::kCausal ? 1 << 30 : 4;
  const int rows = arguments.plan.tiles_per_sequence;
  return keys_stay<Traits>(arguments.params) && rows > 1 && rows <= kMostRows &&
         TileOrder<Traits, true>::longest_run(arguments) > 1;
}

// The scheduler warp: finds the tiles of this CTA, each when the loader asks for it. The first come
// from the index of the CTA, all later ones from a counter in global memory, so that a CTA that is
// done early takes more. The counter starts at 0 and is back at 0 when the kernel ends.
template <bool kPlain, bool kInRuns, class Traits>
__device__ __forceinline__ void schedule_in_order(SharedStorage<Traits>& storage,
                                                  const Arguments<typename Traits::T>& arguments) {
  const TileOrder<Traits, kInRuns> order(arguments);
  const int claims = order.claims();
  int claimed = kPlain ? static_cast<int>(blockIdx.x) : order.first_claim();
  uint32_t phase = 0;
  while (claimed < claims) {
    const TileRange tiles = order.tiles_of(claimed);
#pragma unroll 1
    for (int index = tiles.begin; index < tiles.end; ++index) {
      const PlacedTile tile = order.tile_at(index);
      if (tile.rows > 0 && assign<kPlain>(storage, arguments, tile, phase)) {
        phase ^= 1;
      }
    }
    claimed = gridDim.x + claim(arguments.params.counters, claims);
  }
  if (elect_one()) {
    storage.work[phase].item.end_block = 0;
    storage.work_full.arrive();
  }
}

template <class Traits>
__device__ __forceinline__ void schedule_tiles(SharedStorage<Traits>& storage,
                                               const Arguments<typename Traits::T>& arguments) {
  if (!is_plain(arguments)) {
    schedule_in_order<false, false>(storage, arguments);
    return;
  }
  if constexpr (Traits::kKeepsKeys) {
    if (takes_runs<Traits>(arguments)) {
      schedule_in_order<true, true>(storage, arguments);
      return;
    }
  }
  schedule_in_order<true, false>(storage, arguments);
}

}  // namespace attn::sm90
