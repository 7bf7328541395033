// SPDX-License-Identifier: Apache-2.0
// The (scale, zero) pairs of a block of keys, 4 bytes for each row, by asynchronous copies.
#pragma once

#include "attn/pair_iterator.cuh"
#include "attn/sm90/async_copies.cuh"
#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

enum class KeyPart : int { kKeys, kValues };

// Brings the pairs of K, or those of V, of tile after tile: one warp of the producers for each. The
// slots and their barriers are those of the codes. Behind the end of the sequence pairs are zero,
// and so is what they make of any code: wgmma multiplies those rows of V by 0, which a NaN would
// survive.
//
// Expander and consumers need the issue slots, so this takes as few instructions as it can: from
// one block of keys to the one before, lanes step back through the cache without a division.
template <class Traits, KeyPart kPart>
class PairLoader {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;
  using Work = sm90::Work<Traits::kRowGroups>;
  using Pairs =
      PairIterator<Traits::Config::kCache, T, Traits::kHeadDim, typename Traits::Config::Tkv>;

  static constexpr bool kIsKeys = kPart == KeyPart::kKeys;
  static constexpr int kRows = (Traits::kCtaS + 31) / 32;  // of a lane: lane, lane + 32 ..

  // A row of this lane in the block of keys that is loaded next, and what the block table says of
  // it. Only of caches that consist of blocks.
  struct Row {
    TokenPlace place;
    typename Cache::Entry entry;
  };

 public:
  __device__ __forceinline__ PairLoader(Storage& storage, const AttentionParams<T>& params)
      : storage_(storage), params_(params), lane_(threadIdx.x % 32) {}

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
      if (lane_ == 0) {
        storage_.work_empty.arrive();
      }
      load_tile(work);
      phase ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void load_tile(const Work& work) {
    const int first = warp_uniform(work.item.first_block);
    int block = warp_uniform(work.item.end_block) - 1;
    int count = warp_uniform(work.item.k_len) - block * Traits::kCtaS;  // rows of the last block
    const Pairs pairs = pairs_of(work);
    if constexpr (Cache::kGathered) {
      const BlockSteps<Traits::kCtaS> steps(block_len_of<Traits>(params_));
      const auto* entries = Cache::make(params_, warp_uniform(work.sequence), 0).entries();
      Row rows[kRows] = {};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        rows[i].place = steps.place(block * Traits::kCtaS + row(i));
        if (row(i) < min(count, Traits::kCtaS)) {
          rows[i].entry = entries[rows[i].place.block];
        }
      }
#pragma unroll 1
      for (; block >= first; --block) {
        load_block(count, [&](int i) {
          return pairs.pair_of_block(params_, rows[i].place.row, rows[i].entry);
        });
        if (block > first) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            rows[i].place = steps.before(rows[i].place);
            if (row(i) < Traits::kCtaS) {
              rows[i].entry = entries[rows[i].place.block];
            }
          }
        }
        signal();
        count = Traits::kCtaS;
      }
    } else {
#pragma unroll 1
      for (; block >= first; --block) {
        load_block(count,
                   [&](int i) { return pairs.pair(params_, block * Traits::kCtaS + row(i), 0); });
        signal();
        count = Traits::kCtaS;
      }
    }
  }

  // Pairs of the first `count` rows of a block of keys, from where `address_of` row i of this lane
  // is, once their slot is free.
  template <class AddressOf>
  __device__ __forceinline__ void load_block(int count, const AddressOf& address_of) {
    const int slot = slots_.slot();
    const uint32_t place =
        shared_address(kIsKeys ? storage_.pairs.keys[slot] : storage_.pairs.values[slot]);
    (kIsKeys ? storage_.k_empty : storage_.v_empty)[slot].wait(slots_.phase() ^ 1);  // was read
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const char* address = reinterpret_cast<const char*>(params_.q);  // not read
      const bool exists = row(i) < count;
      if (exists) {
        const RowAddress pair = address_of(i);
        address = kIsKeys ? pair.k : pair.v;
      }
      if (row(i) < Traits::kCtaS) {
        copy_word_async(place + row(i) * 4, address, exists);
      }
    }
  }

  __device__ __forceinline__ void signal() {
    arrive_after_copies((kIsKeys ? storage_.k_full : storage_.v_full)[slots_.slot()]);
    slots_.advance();
  }

  __device__ __forceinline__ int row(int i) const { return i * 32 + lane_; }

  __device__ __forceinline__ Pairs pairs_of(const Work& work) const {
    const int kv_head = warp_uniform(work.kv_head);
    if constexpr (Cache::kGathered) {
      return Pairs::make(params_, warp_uniform(work.sequence), kv_head);
    } else {
      return Pairs::from(params_, work.key_token, kv_head);
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const int lane_;
  PackedRingPosition<Traits::kLoadedStages> slots_;
};

}  // namespace attn::sm90
