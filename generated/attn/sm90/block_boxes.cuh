// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys by TMA, of a paged or block cache: one box per panel and block of the
// cache.
#pragma once

#include "attn/pair_iterator.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/box_place.cuh"
#include "attn/sm90/key_source.cuh"
#include "attn/sm90/loader_source.cuh"
#include "attn/sm90/resident_keys.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/tma.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// A paged or block cache, in boxes of box_rows() rows, each within one block of the cache. By
// loader_warps() warps, which share the boxes: lane i of each looks up where box i lies, one block
// of keys ahead of K, and one lane loads. Boxes behind the end of the sequence are left out: their
// entries in the block table may be wild. Of codes, lane i also loads the pairs of box i, where
// they come with it.
//
// The consumers need the issue slots (at head_dim 64 every one of them), so this takes as few
// instructions as it can: from one block of keys to the one before, lanes step back through the
// cache without a division.
template <class Traits, bool kKeeps>
class BlockBoxes : public LoaderSource {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

  using Pairs =
      PairIterator<Traits::Config::kCache, T, Traits::kHeadDim, typename Traits::Config::Tkv>;

  static constexpr bool kByAddress = Traits::Config::kCache == CacheType::kBlock;
  static constexpr bool kHasPairs = Traits::Kv::kHasPairs;
  static constexpr bool kFormsAddresses = kByAddress || kHasPairs;  // of entries, not maps alone
  static constexpr int kPairBytes = 2 * sizeof(T);

 public:
  __device__ __forceinline__ BlockBoxes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        arguments_(arguments),
        steps_(block_len_of<Traits>(arguments.params)),
        rows_(box_rows(steps_.block_len(), Traits::kCtaS)),
        warps_(loader_warps<Traits>(arguments.params)),
        brings_pairs_(pairs_come_with_boxes<Traits>(arguments.params)),
        warp_(warp_uniform(threadIdx.x / 32) - 1) {
    if (leads()) {
      prefetch_map(arguments.k);
      prefetch_map(arguments.v);
    }
  }

  __device__ __forceinline__ bool leads() const { return in_leading_warp() && elect_one(); }
  __device__ __forceinline__ bool in_leading_warp() const { return warp_ == 0; }

  // One lane of each warp, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return elect_one();
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    const auto& work = storage_.work[work_slot];
    first_block_ = warp_uniform(work.item.first_block);
    kv_head_ = warp_uniform(work.kv_head);
    resident_.begin_tile(warp_uniform(work.sequence), kv_head_);
    if (!looked_ahead_) {
      look_up_last(work);
    }
    looked_ahead_ = false;
  }

  // If the work after this tile is known already, starts the look-up for it.
  __device__ __forceinline__ void look_ahead(int next_slot) {
    if (__all_sync(0xffffffffu, storage_.work_full.ended(next_slot))) {
      const Work<Traits::kRowGroups>& next = storage_.work[next_slot];
      if (warp_uniform(next.item.end_block) > 0) {
        look_up_last(next);
        looked_ahead_ = true;
      }
    }
  }

  // K runs one block ahead of V, and the look-up one ahead of K.
  __device__ __forceinline__ void prepare(int block) {
    values_ = keys_;
    keys_ = {next_.count, place(), key_pairs()};
    key_block_ = block;
    if (block > first_block_) {
      look_up_before();
    }
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    if (resident_.has_keys(slot, block)) {
      fill_again(storage_.k_full[slot]);
      return;
    }
    load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], keys_);
    if constexpr (kHasPairs) {
      load_pairs(storage_.pairs.keys[slot], storage_.k_full[slot], keys_, pairs_of(keys_).k);
    }
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    if (resident_.has_values(slot, block)) {
      fill_again(storage_.v_full[slot]);
      return;
    }
    Boxes boxes = block == key_block_ ? keys_ : values_;
    const RowAddress pairs = pairs_of(boxes);
    if constexpr (kByAddress) {
      // Behind the K rows of the block and head.
      boxes.place.minor += steps_.block_len() * (Cache::kRowBytes / 16);
      boxes.place.major += boxes.place.minor >> kAddressBits;
      boxes.place.minor &= (1 << kAddressBits) - 1;
    }
    load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], boxes);
    if constexpr (kHasPairs) {
      load_pairs(storage_.pairs.values[slot], storage_.v_full[slot], boxes, pairs.v);
    }
  }

 private:
  // The boxes of a block of keys.
  struct Boxes {
    int count = 0;
    BoxPlace place{};                 // of box `lane`
    const char* key_pairs = nullptr;  // kByAddress: of its rows, where they come with it
  };

  // What the block table says of them, on its way.
  struct LookUp {
    int count = 0;
    TokenPlace token{};  // where box `lane` begins
    typename Cache::Entry entry{};
  };

  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }

  // The last block of keys of a tile, some boxes of which may lie behind the end of the sequence.
  __device__ __forceinline__ void look_up_last(const Work<Traits::kRowGroups>& work) {
    const int first_row = lane() * rows_;
    const int token = (work.item.end_block - 1) * Traits::kCtaS + first_row;
    const bool exists = first_row < Traits::kCtaS && token < work.item.k_len;
    entries_ = Cache::make(arguments_.params, work.sequence, 0).entries();
    if constexpr (kFormsAddresses) {
      first_entry_ = first_seen_block<Traits>(work.item, arguments_.params, steps_);
    }
    next_.token = steps_.place(token);
    read_entry(exists);
  }

  // The block of keys before the one that was looked up: it is whole.
  __device__ __forceinline__ void look_up_before() {
    next_.token = steps_.before(next_.token);
    read_entry(lane() * rows_ < Traits::kCtaS);
  }

  // In front of a window entries may be wild: where they become addresses, that of a key which is
  // seen is read instead; an id outside the map reads as zeros.
  __device__ __forceinline__ void read_entry(bool exists) {
    next_.count = __popc(__ballot_sync(0xffffffffu, exists));
    if (exists) {
      const int block = next_.token.block;
      next_.entry = entries_[kFormsAddresses ? max(block, first_entry_) : block];
    }
  }

  // What was looked up.
  __device__ __forceinline__ BoxPlace place() const {
    if constexpr (kByAddress) {
      const BlockIteratorParams& cache = arguments_.params.block_iter_params;
      return place_of(next_.entry + cache.layer_offset +
                      (static_cast<int64_t>(kv_head_) * 2 * steps_.block_len() + next_.token.row) *
                          Cache::kRowBytes);
    } else {
      return {next_.token.row, next_.entry};
    }
  }

  // What place() does not tell of the pairs.
  __device__ __forceinline__ const char* key_pairs() const {
    if constexpr (kHasPairs && kByAddress) {
      return pairs_of_head().pair_of_block(arguments_.params, next_.token.row, next_.entry).k;
    } else {
      return nullptr;
    }
  }

  __device__ __forceinline__ RowAddress pairs_of(const Boxes& boxes) const {
    if constexpr (!kHasPairs) {
      return {};
    } else if constexpr (kByAddress) {
      return {boxes.key_pairs, boxes.key_pairs + steps_.block_len() * kPairBytes};
    } else {
      return pairs_of_head().pair_of_block(arguments_.params, boxes.place.minor, boxes.place.major);
    }
  }

  __device__ __forceinline__ Pairs pairs_of_head() const {
    return Pairs::make(arguments_.params, 0, kv_head_);
  }

  // A slot that has its block.
  __device__ __forceinline__ void fill_again(Barrier& full) const {
    if (warp_ == 0 && elect_one()) {
      full.arrive();
    }
  }

  // Behind load(), which has announced their bytes.
  __device__ __forceinline__ void load_pairs(uint32_t (&slot)[Traits::kCtaS],
                                             Barrier& full,
                                             const Boxes& boxes,
                                             const char* pairs) const {
    if (brings_pairs_ && lane() < boxes.count) {
      load_bytes(&slot[lane() * rows_], pairs, rows_ * kPairBytes, full);
    }
  }

  template <class Panel, int kPanels>
  __device__ __forceinline__ void load(Panel (&panels)[kPanels],
                                       const TensorMap& map,
                                       Barrier& full,
                                       const Boxes& boxes) {
    const int box_bytes = rows_ * (Traits::kPanelColumns * sizeof(T));
    const bool loads = elect_one();
    // Of all warps: that bytes of the others land before they are announced does no harm.
    if (warp_ == 0 && loads) {
      const int pair_bytes = kHasPairs && brings_pairs_ ? rows_ * kPairBytes : 0;
      full.arrive_and_expect(boxes.count * (box_bytes * kPanels + pair_bytes));
    }
    char* target = reinterpret_cast<char*>(&panels[0]) + warp_ * box_bytes;
#pragma unroll 1
    for (int box = warp_; box < boxes.count; box += warps_) {
      const int minor = __shfl_sync(0xffffffffu, boxes.place.minor, box);
      const int major = __shfl_sync(0xffffffffu, boxes.place.major, box);
      if (loads) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          load_box(target + panel * sizeof(Panel),
                   map,
                   full,
                   kByAddress
                       ? BlockBoxOrigin{panel * Traits::kPanelColumns, minor, 0, major}
                       : BlockBoxOrigin{panel * Traits::kPanelColumns, kv_head_, minor, major},
                   CacheHint::kEvictLast);
        }
      }
      target += warps_ * box_bytes;
    }
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  const BlockSteps<Traits::kCtaS> steps_;
  const int rows_;  // of a box
  const int warps_;
  const bool brings_pairs_;
  const int warp_;

  // The tile being loaded.
  int first_block_ = 0;
  int kv_head_ = 0;
  ResidentKeys<Traits::kLoadedStages, kKeeps> resident_;

  int key_block_ = 0;  // the block of keys that keys_ belongs to
  Boxes keys_;
  Boxes values_;  // of the block after it

  // Of the block before it, or (looked_ahead_) of the last of the tile after this.
  LookUp next_;
  bool looked_ahead_ = false;
  const typename Cache::Entry* entries_ = nullptr;  // what the block table says of the sequence
  int first_entry_ = 0;                             // the first that a row of the tile asks for
};

}  // namespace attn::sm90
