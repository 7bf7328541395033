// SPDX-License-Identifier: Apache-2.0
// The (scale, zero) pairs of a block of keys, 4 bytes for each row, by asynchronous copies.
#pragma once

#include "attn/async_copies.cuh"
#include "attn/pair_iterator.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/key_source.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// Brings the pairs of K and V of tile after tile, where they do not come with the boxes of their
// codes: each of kPairWarps warps those of its part of the
// rows. The slots and their barriers are those of the codes. Behind the end of the sequence pairs
// are zero, and so is what they make of any code: wgmma multiplies those rows of V by 0, which a
// NaN would survive.
//
// Expander and consumers need the issue slots, so this takes as few instructions as it can: a row
// is looked up once for K and V, and from one block of keys to the one before, lanes step back
// through the cache without a division.
template <class Traits>
class PairLoader {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;
  using Work = sm90::Work<Traits::kRowGroups>;
  using Pairs =
      PairIterator<Traits::Config::kCache, T, Traits::kHeadDim, typename Traits::Config::Tkv>;
  using Entries = const typename Cache::Entry*;  // of a sequence, in the block table
  using Ring = PackedRingPosition<Traits::kLoadedStages>;

  static constexpr int kWarpRows = Traits::kCtaS / Traits::kPairWarps;
  static constexpr int kRows =
      (kWarpRows + 31) / 32;  // of a lane: lane, lane + 32 .. of the warp's

  static_assert(Traits::kCtaS % Traits::kPairWarps == 0, "each warp has as many rows");

  // Where the pairs of this lane's rows are: of K or of V.
  struct Addresses {
    const char* row[kRows];
  };

  // A row of this lane in the block of keys that comes next.
  struct Row {
    TokenPlace place;             // of a cache that consists of blocks,
    typename Cache::Entry entry;  // and what the block table says of its block, on its way
  };

 public:
  __device__ __forceinline__ PairLoader(Storage& storage,
                                        const AttentionParams<T>& params,
                                        int warp)
      : storage_(storage),
        params_(params),
        steps_(Cache::kGathered ? block_len_of<Traits>(params) : Traits::kCtaS),
        first_row_(warp * kWarpRows) {}

  __device__ __forceinline__ void run() {
    wait_for_former_launch();  // which may write what is loaded
    uint32_t phase = 0;
    while (true) {
      storage_.work_full.wait(phase);  // the work is visible
      const Work& work = storage_.work[phase];
      if (work.item.end_block == 0) {
        return;
      }
      __syncwarp();  // all lanes have left the work before this
      if (lane() == 0) {
        storage_.work_empty.arrive();
      }
      load_tile(work);
      phase ^= 1;
    }
  }

 private:
  // In the order of the loader: V runs one block behind K.
  __device__ __forceinline__ void load_tile(const Work& work) {
    const int first = warp_uniform(work.item.first_block);
    const int last = warp_uniform(work.item.end_block) - 1;
    const int last_count = warp_uniform(work.item.k_len) - last * Traits::kCtaS;
    const Pairs pairs = pairs_of(work);
    const Entries entries = entries_of(work);
    // In front of a window entries may be wild: that of a key which is seen is read instead.
    const int first_entry = first_seen_block<Traits>(work.item, params_, steps_);
    Row rows[kRows] = {};
    look_up_last(rows, entries, first_entry, last, last_count);
    Addresses values{};
    int key_count = last_count;
    int value_count = last_count;
#pragma unroll 1
    for (int block = last; block >= first; --block) {
      Addresses keys;
      Addresses next_values;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const RowAddress pair = address(pairs, rows[i], block * Traits::kCtaS + row(i));
        keys.row[i] = pair.k;
        next_values.row[i] = pair.v;
      }
      if (block > first) {
        look_up_before(rows, entries, first_entry);
      }
      load_keys(keys, key_count);
      if (block < last) {
        load_values(values, value_count);
        value_count = Traits::kCtaS;
      }
      key_count = Traits::kCtaS;
      values = next_values;
    }
    load_values(values, value_count);
  }

  __device__ __forceinline__ void load_keys(const Addresses& addresses, int count) {
    storage_.k_empty[keys_.slot()].wait(keys_.phase() ^ 1);  // the pairs of the slot were read
    copy(storage_.pairs.keys[keys_.slot()], addresses, count);
    arrive_after_copies(storage_.k_full[keys_.slot()]);
    keys_.advance();
  }

  __device__ __forceinline__ void load_values(const Addresses& addresses, int count) {
    storage_.v_empty[values_.slot()].wait(values_.phase() ^ 1);  // the pairs of the slot were read
    copy(storage_.pairs.values[values_.slot()], addresses, count);
    arrive_after_copies(storage_.v_full[values_.slot()]);
    values_.advance();
  }

  // The first `count` pairs of a block of keys, and zeros behind them, for which nothing is read.
  __device__ __forceinline__ void copy(uint32_t (&slot)[Traits::kCtaS],
                                       const Addresses& addresses,
                                       int count) const {
    const uint32_t place = shared_address(slot);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (is_row(i)) {
        copy_async_4_or_zero(place + row(i) * 4, addresses.row[i], row(i) < count);
      }
    }
  }

  // --- where the rows lie ----------------------------------------------------------------------

  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }
  __device__ __forceinline__ int row(int i) const { return first_row_ + i * 32 + lane(); }

  // Whether this lane has a row i.
  __device__ __forceinline__ bool is_row(int i) const {
    return (i + 1) * 32 <= kWarpRows || i * 32 + lane() < kWarpRows;
  }

  // The last block of keys of a tile, of which `count` rows exist.
  __device__ __forceinline__ void look_up_last(
      Row (&rows)[kRows], Entries entries, int first_entry, int block, int count) const {
    if constexpr (Cache::kGathered) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        rows[i].place = steps_.place(block * Traits::kCtaS + row(i));
        if (is_row(i) && row(i) < count) {
          rows[i].entry = entries[max(rows[i].place.block, first_entry)];
        }
      }
    }
  }

  // The block of keys before the one that was looked up: it is whole.
  __device__ __forceinline__ void look_up_before(Row (&rows)[kRows],
                                                 Entries entries,
                                                 int first_entry) const {
    if constexpr (Cache::kGathered) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        rows[i].place = steps_.before(rows[i].place);
        if (is_row(i)) {
          rows[i].entry = entries[max(rows[i].place.block, first_entry)];
        }
      }
    }
  }

  __device__ __forceinline__ RowAddress address(const Pairs& pairs,
                                                const Row& row,
                                                int token) const {
    if constexpr (Cache::kGathered) {
      return pairs.pair_of_block(params_, row.place.row, row.entry);
    } else {
      return pairs.pair(params_, token, row.entry);
    }
  }

  __device__ __forceinline__ Pairs pairs_of(const Work& work) const {
    if constexpr (Cache::kGathered) {
      return Pairs::make(params_, warp_uniform(work.sequence), warp_uniform(work.kv_head));
    } else {
      return Pairs::from(params_, work.key_token, warp_uniform(work.kv_head));
    }
  }

  __device__ __forceinline__ Entries entries_of(const Work& work) const {
    if constexpr (Cache::kGathered) {
      return Cache::make(params_, warp_uniform(work.sequence), 0).entries();
    } else {
      return nullptr;
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const BlockSteps<Traits::kCtaS> steps_;
  const int first_row_;  // of the warp
  Ring keys_;
  Ring values_;
};

}  // namespace attn::sm90
