// SPDX-License-Identifier: Apache-2.0
// Which tiles a CTA computes: all CTAs take them from a counter one by one, in the order of
// TileOrder.
#pragma once

#include "attn/key_range.cuh"
#include "attn/sm90/empty_tiles.cuh"
#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/tile_order.cuh"

namespace attn::sm90 {

// Takes a number from the counter. One is taken for each tile, `size` in all; the last resets the
// counter.
__device__ __forceinline__ int claim(int* counter, int size) {
  int claimed = 0;
  if (threadIdx.x % 32 == 0) {
    claimed = atomicAdd(counter, 1);
    if (claimed == size - 1) {
      *counter = 0;
    }
  }
  return warp_uniform(claimed);
}

// What there is to do for a tile.
template <class Traits>
class Assignment {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ Assignment(const Arguments<T>& arguments, const QueryTile& tile)
      : arguments_(arguments),
        params_(arguments.params),
        plan_(arguments.plan),
        tile_(tile),
        visible_(visible_keys(
            params_, tile.sequence, tile.q_len, Traits::Config::kMask == Mask::kCausal)),
        whole_(tiles_of(visible_.any(tile.first_query, tile.first_query + tile.rows - 1),
                        Traits::kCtaS)) {}

  // No query of the tile sees a key.
  __device__ __forceinline__ bool is_empty() const { return whole_.begin >= whole_.end; }

  // Writes it down; false where the tile's split has no keys. By a whole warp.
  __device__ __forceinline__ bool write(Work& work) const {
    const TileRange mine = split_range(whole_.begin, whole_.end, plan_, tile_.split);
    if (mine.begin >= mine.end) {
      return false;
    }
    if (elect_one()) {
      const bool leaves_partial =
          params_.cp_size > 1 || split_count(whole_.begin, whole_.end, plan_) > 1;
      work.item.first_block = mine.begin;
      work.item.end_block = mine.end;
      work.item.first_query = tile_.first_query;
      work.item.q_len = tile_.q_len;
      work.item.k_len = visible_.k_len;
      work.item.origin = visible_.origin;
      work.item.chunk = visible_.shards.chunk;
      work.item.head = tile_.head;
      work.item.first_token = tile_.first_token;
      work.item.split = leaves_partial ? tile_.split : kWholeRow;
      work.sequence = tile_.sequence;
      work.key_token = Traits::Cache::kGathered ? 0 : first_linear_row(params_, tile_.sequence);
      work.kv_head = kv_head();
    }
    return true;
  }

 private:
  __device__ __forceinline__ int kv_head() const {
    const int pack = packed_rows(arguments_).token(tile_.head);
    return quotient(pack, arguments_.group_packs);
  }

  const Arguments<T>& arguments_;
  const AttentionParams<T>& params_;
  const TilePlan& plan_;
  const QueryTile& tile_;
  const VisibleKeys visible_;
  const TileRange whole_;  // key blocks that some query of the tile sees
};

// The scheduler warp: finds the tiles of this CTA, each when the loader asks for it. The first
// comes from the index of the CTA, each later one from a counter in global memory, so that a CTA
// that is done early takes more. The counter starts at 0 and is back at 0 when the kernel ends. A
// tile that sees no key is written here: nobody else meets it.
template <class Traits>
__device__ __forceinline__ void schedule_tiles(SharedStorage<Traits>& storage,
                                               const Arguments<typename Traits::T>& arguments) {
  const TileOrder<Traits> order(arguments);
  int index = blockIdx.x;
  uint32_t phase = 0;
  while (index < order.size()) {
    const QueryTile tile = order.query_tile(index);
    if (tile.rows > 0) {
      const Assignment<Traits> assignment(arguments, tile);
      if (assignment.write(storage.work[phase])) {
        if (elect_one()) {
          storage.work_full.arrive();
        }
        storage.work_empty.wait(
            phase);  // the loader asks for the next, and has left the other slot
        phase ^= 1;
      } else if (assignment.is_empty() && tile.split == 0) {
        write_empty_tile<Traits>(arguments, tile);
      }
    }
    index = gridDim.x + claim(arguments.params.counters, order.size());
  }
  if (elect_one()) {
    storage.work[phase].item.end_block = 0;
    storage.work_full.arrive();
  }
}

}  // namespace attn::sm90
