// SPDX-License-Identifier: Apache-2.0
// An order of all tiles: which one is computed before which.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/cluster.cuh"
#include "attn/sm90/dependent_launch.cuh"

namespace attn::sm90 {

// value / divisor for what is often 0 or divided by 1. The first tile of a CTA waits for each
// division, and a whole warp branches alike.
__device__ __forceinline__ int quotient(int value, int divisor) {
  if (divisor == 1) {
    return value;
  }
  return value < divisor ? 0 : static_cast<unsigned>(value) / static_cast<unsigned>(divisor);
}

// A tile and the keys of its sequence.
struct PlacedTile : QueryTile {
  int pack;           // of query heads, whose first is `head`
  int sequence_keys;  // those of other ranks too
  int key_token;      // kTokenBoxes: row of K and V that holds key 0
};

// A column is one pack of heads of one sequence (where the tiles of a sequence are found by search:
// of all sequences), a row is a tile and a split of it, the last tile of a sequence first, because
// under a causal mask it is the longest. Columns go in sections whose K and V fit into L2 together;
// within a section the order is row by row.
//
// A CTA takes one tile at a time. kInRuns: two or four of one column, whose keys it loads once
// (resident_keys.cuh); a section is a column then, and the first tile of a sequence comes first,
// because the others see its keys, too. As many tiles as a run for each CTA has are taken one at a
// time in the end, so that all CTAs end together.
template <class Traits, bool kInRuns>
class TileOrder {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ explicit TileOrder(const Arguments<T>& arguments)
      : params_(arguments.params),
        plan_(arguments.plan),
        group_packs_(arguments.group_packs),
        pack_heads_(arguments.pack_heads),
        run_(kInRuns ? longest_run(arguments) : 1),
        runs_(kInRuns ? size() / run_ - static_cast<int>(gridDim.x) : 0),
        section_(kInRuns ? 1 : arguments.plan.section) {}

  // Tiles of a run: 1 where there are too few for each CTA to take one before the end.
  __device__ __forceinline__ static int longest_run(const Arguments<T>& arguments) {
    const TileOrder<Traits, false> order(arguments);
    const int most = min(order.rows(), order.size() / (static_cast<int>(gridDim.x) * 2));
    return most >= 4 ? 4 : most >= 2 ? 2 : 1;
  }

  // How often all CTAs together take tiles.
  __device__ __forceinline__ int claims() const { return size() - runs_ * (run_ - 1); }

  // The first of this CTA. The CTAs of a cluster take the splits of one tile; all have one section
  // then, and a CTA for each split.
  __device__ __forceinline__ int first_claim() const {
    const int cta = static_cast<int>(blockIdx.x);
    if constexpr (Traits::kMergesSplits) {
      if (cluster_size() > 1) {
        const int tile = cta / plan_.split_cnt;
        const int slot = tile / columns();
        const int row = slot * plan_.split_cnt + cluster_rank();
        return row * columns() + tile - slot * columns();
      }
    }
    return cta;
  }

  // Indices of the tiles that are taken together.
  __device__ __forceinline__ TileRange tiles_of(int claim) const {
    const int begin = claim < runs_ ? claim * run_ : claim + runs_ * (run_ - 1);
    return {begin, claim < runs_ ? begin + run_ : begin + 1};
  }

  __device__ __forceinline__ int size() const { return rows() * columns(); }

  __device__ __forceinline__ int rows() const {
    return (plan_.tiles_per_sequence > 0 ? plan_.tiles_per_sequence : plan_.q_tiles) *
           plan_.split_cnt;
  }

  // The tile at an index below size(); without rows where there is no such tile, or its sequence is
  // finished. By a whole warp, which waits for the launch before this one where it first reads
  // memory.
  __device__ __forceinline__ PlacedTile tile_at(int index) const {
    const int section_size = recomputed(section_ * rows());
    const int last = last_section();
    const int section = min(quotient(index, section_size), last);
    const int in_section = index - section * section_size;
    const int width = section < last ? section_ : columns() - section * section_;
    const int row = quotient(in_section, width);
    const int column = section * section_ + in_section - row * width;
    const int splits = recomputed(plan_.split_cnt);
    const int slot = quotient(row, splits);
    PlacedTile tile;
    tile.split = row - slot * splits;

    wait_for_former_launch();
    int from_last = slot;  // 0: the last tile of its sequence
    if (plan_.tiles_per_sequence > 0) {
      tile.sequence = quotient(column, packs());
      tile.pack = column - tile.sequence * packs();
    } else {
      int start;
      tile.sequence = find_sequence(params_.cu_q_len, params_.batch_size, plan_.cta_q, slot, start);
      tile.pack = column;
      from_last = slot - start;
    }
    tile.head = tile.pack * pack_heads_;
    set_rows(tile, from_last);
    return tile;
  }

 private:
  // The first tile of a CTA waits for these reads, so they are under way together.
  __device__ __forceinline__ void set_rows(PlacedTile& tile, int from_last) const {
    const int q_begin = params_.cu_q_len[tile.sequence];
    const int q_end = params_.cu_q_len[tile.sequence + 1];
    const int k_begin = params_.cu_k_len[tile.sequence];
    const int k_end = params_.cu_k_len[tile.sequence + 1];
    tile.q_len = q_end - q_begin;
    tile.sequence_keys = k_end - k_begin;
    tile.key_token = Traits::Cache::kGathered ? 0 : first_linear_row(params_, tile.sequence);
    const int tiles = tiles_of_queries(tile.q_len);
    tile.first_query = (kInRuns ? from_last : tiles - 1 - from_last) * plan_.cta_q;
    tile.first_token = q_begin + tile.first_query;
    tile.rows = from_last < tiles ? min(plan_.cta_q, tile.q_len - tile.first_query) : 0;
    if (params_.finished != nullptr && params_.finished[tile.sequence]) {
      tile.rows = 0;
    }
  }

  // ceil(queries / cta_q), where cta_q is kCtaQ by a power of two.
  __device__ __forceinline__ int tiles_of_queries(int queries) const {
    const unsigned last = static_cast<unsigned>(queries) + plan_.cta_q - 1;
    if constexpr ((Traits::kCtaQ & (Traits::kCtaQ - 1)) == 0) {
      return static_cast<int>(last >> (31 - __clz(plan_.cta_q)));
    } else {
      return static_cast<int>(last / static_cast<unsigned>(plan_.cta_q));
    }
  }

  // It takes the columns behind it, too. Under a causal mask it has three tiles for every two CTAs
  // at least, so that all end with short ones.
  __device__ __forceinline__ int last_section() const {
    if (kInRuns) {
      return columns() - 1;
    }
    if (columns() <= section_) {
      return 0;
    }
    int least = 1;
    if constexpr (Traits::Config::kMask == Mask::kCausal) {
      least += quotient(static_cast<int>(gridDim.x) * 3 / 2, rows());
    }
    return quotient(max(columns() - least, 0), section_);
  }

  __device__ __forceinline__ int columns() const {
    return plan_.tiles_per_sequence > 0 ? params_.batch_size * packs() : packs();
  }

  // Of query heads.
  __device__ __forceinline__ int packs() const {
    return recomputed(params_.num_kv_heads * group_packs_);
  }

  const AttentionParams<T>& params_;
  const TilePlan& plan_;
  const int group_packs_;  // of a KV head
  const int pack_heads_;
  const int run_;
  const int runs_;
  const int section_;
};

}  // namespace attn::sm90
