// SPDX-License-Identifier: Apache-2.0
// The (scale, zero) pairs of a block of keys, 4 bytes for each row, by asynchronous copies.
#pragma once

#include "attn/pair_iterator.cuh"
#include "attn/sm90/async_copies.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

enum class KeyPart : int { kKeys, kValues };

// Brings the pairs of K, or those of V, of tile after tile: one warp of the producers for each. The
// slots and their barriers are those of the codes. Behind the end of the sequence pairs are zero,
// and so is what they make of any code: wgmma multiplies those rows of V by 0, which a NaN would
// survive.
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
    const Pairs pairs = iterator<Pairs>(work);
    look_up(work, work.item.end_block - 1);
#pragma unroll 1
    for (int block = work.item.end_block - 1; block >= work.item.first_block; --block) {
      load_block(work, pairs, block);
    }
  }

  __device__ __forceinline__ void load_block(const Work& work, const Pairs& pairs, int block) {
    Barrier& empty = kIsKeys ? storage_.k_empty[slots_.slot()] : storage_.v_empty[slots_.slot()];
    Barrier& full = kIsKeys ? storage_.k_full[slots_.slot()] : storage_.v_full[slots_.slot()];
    empty.wait(slots_.phase() ^ 1);  // the codes and pairs of the slot have been read
    const uint32_t place = shared_address(kIsKeys ? storage_.pairs.keys[slots_.slot()]
                                                  : storage_.pairs.values[slots_.slot()]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = i * 32 + lane_;
      const int token = token_of(work, block, i);
      const char* address = reinterpret_cast<const char*>(params_.q);  // not read
      if (token >= 0) {
        const RowAddress pair = pairs.pair(params_, token, entries_[i]);
        address = kIsKeys ? pair.k : pair.v;
      }
      if (row < Traits::kCtaS) {
        copy_word_async(place + row * 4, address, token >= 0);
      }
    }
    if (block > work.item.first_block) {
      look_up(work, block - 1);
    }
    arrive_after_copies(full);
    slots_.advance();
  }

  // The key of this lane's row i, or -1 where there is none.
  __device__ __forceinline__ int token_of(const Work& work, int block, int i) const {
    const int row = i * 32 + lane_;
    const int token = block * Traits::kCtaS + row;
    return row < Traits::kCtaS && token < work.item.k_len ? token : -1;
  }

  template <class Iterator>
  __device__ __forceinline__ Iterator iterator(const Work& work) const {
    if constexpr (Cache::kGathered) {
      return Iterator::make(params_, work.sequence, work.kv_head);
    } else {
      return Iterator::from(params_, work.key_token, work.kv_head);
    }
  }

  // Starts to read what the block table says of this lane's rows.
  __device__ __forceinline__ void look_up(const Work& work, int block) {
    if constexpr (Cache::kGathered) {
      const Cache cache = iterator<Cache>(work);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int token = token_of(work, block, i);
        if (token >= 0) {
          entries_[i] = cache.entry(token);
        }
      }
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const int lane_;
  PackedRingPosition<Traits::kLoadedStages> slots_;
  typename Cache::Entry entries_[kRows] = {};  // of the block that is loaded next
};

}  // namespace attn::sm90
