// SPDX-License-Identifier: Apache-2.0
// Which tiles a CTA computes: an order of all tiles, and a counter from which the CTAs take them
// one by one.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/sm90/empty_tiles.cuh"
#include "attn/sm90/prefill_traits.cuh"

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

// All tiles in the order in which they are taken. A column is one head, or pack of heads, of one
// sequence (where the tiles of a sequence are found by search: of all sequences), a row is a tile
// and a split of it, the last tile first, because under a causal mask it is the longest. Columns go
// in sections whose K and V fit into L2 together; within a section the order is row by row.
template <class Traits>
class TileOrder {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ explicit TileOrder(const Arguments<T>& arguments)
      : params_(arguments.params), plan_(arguments.plan), section_(arguments.section) {}

  __device__ __forceinline__ int size() const { return rows() * columns(); }

  // What the queries of a tile's sequence see.
  __device__ __forceinline__ VisibleKeys visible(const QueryTile& tile) const {
    return visible_keys(params_, tile.sequence, tile.q_len, Traits::Config::kMask == Mask::kCausal);
  }

  // The key blocks that some query of a tile with rows sees.
  __device__ __forceinline__ static TileRange blocks_seen(const QueryTile& tile,
                                                          const VisibleKeys& visible) {
    return tiles_of(visible.any(tile.first_query, tile.first_query + tile.rows - 1), Traits::kCtaS);
  }

  // Writes what there is to do for a tile that sees the blocks `whole`; false where its split has
  // none of them. By a whole warp.
  __device__ __forceinline__ bool assign(const QueryTile& tile,
                                         const VisibleKeys& visible,
                                         TileRange whole,
                                         Work& work) const {
    const TileRange mine = split_range(whole.begin, whole.end, plan_, tile.split);
    if (mine.begin >= mine.end) {
      return false;
    }
    if (elect_one()) {
      const bool leaves_partial =
          params_.cp_size > 1 || split_count(whole.begin, whole.end, plan_) > 1;
      work.item.first_block = mine.begin;
      work.item.end_block = mine.end;
      work.item.first_query = tile.first_query;
      work.item.q_len = tile.q_len;
      work.item.k_len = visible.k_len;
      work.item.origin = visible.origin;
      work.item.chunk = visible.shards.chunk;
      work.item.head = tile.head;
      work.item.first_token = tile.first_token;
      work.item.split = leaves_partial ? tile.split : kWholeRow;
      work.sequence = tile.sequence;
      work.key_token = Traits::Cache::kGathered ? 0 : first_linear_row(params_, tile.sequence);
      const int group = recomputed(params_.num_heads) / recomputed(params_.num_kv_heads);
      work.kv_head = tile.head / group;
    }
    return true;
  }

  // The tile at an index below size(); without rows where there is no such tile, or its sequence is
  // finished. By a whole warp.
  __device__ __forceinline__ QueryTile query_tile(int index) const {
    QueryTile tile;
    const int section_size = recomputed(section_ * rows());
    const int splits = recomputed(plan_.split_cnt);
    const int section = index / section_size;
    const int in_section = index - section * section_size;
    const int width = min(section_, columns() - section * section_);
    const int row = in_section / width;
    const int column = section * section_ + in_section - row * width;
    const int slot = row / splits;
    tile.split = row - slot * splits;

    int from_last = slot;  // 0: the last tile of its sequence
    if (plan_.tiles_per_sequence > 0) {
      const int heads = packs();
      tile.sequence = column / heads;
      tile.head = column - tile.sequence * heads;
    } else {
      int start;
      tile.sequence = find_sequence(params_.cu_q_len, params_.batch_size, plan_.cta_q, slot, start);
      tile.head = column;
      from_last = slot - start;
    }
    tile.head *= plan_.packed_heads;

    const int q_begin = params_.cu_q_len[tile.sequence];
    tile.q_len = params_.cu_q_len[tile.sequence + 1] - q_begin;
    const int tiles = (tile.q_len + plan_.cta_q - 1) / plan_.cta_q;
    tile.first_query = (tiles - 1 - from_last) * plan_.cta_q;
    tile.first_token = q_begin + tile.first_query;
    tile.rows = from_last < tiles ? min(plan_.cta_q, tile.q_len - tile.first_query) : 0;
    if (params_.finished != nullptr && params_.finished[tile.sequence]) {
      tile.rows = 0;
    }
    return tile;
  }

 private:
  __device__ __forceinline__ int columns() const {
    return plan_.tiles_per_sequence > 0 ? params_.batch_size * packs() : packs();
  }

  // Of heads.
  __device__ __forceinline__ int packs() const {
    return PackedRows{recomputed(plan_.packed_heads)}.packs(recomputed(params_.num_heads));
  }

  __device__ __forceinline__ int rows() const {
    const int per_sequence = recomputed(plan_.tiles_per_sequence);
    return (per_sequence > 0 ? per_sequence : plan_.q_tiles) * plan_.split_cnt;
  }

  const AttentionParams<T>& params_;
  const TilePlan& plan_;
  const int section_;
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
      const VisibleKeys visible = order.visible(tile);
      const TileRange blocks = order.blocks_seen(tile, visible);
      if (order.assign(tile, visible, blocks, storage.work[phase])) {
        if (elect_one()) {
          storage.work_full.arrive();
        }
        storage.work_empty.wait(
            phase);  // the loader asks for the next, and has left the other slot
        phase ^= 1;
      } else if (blocks.begin >= blocks.end && tile.split == 0) {
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
