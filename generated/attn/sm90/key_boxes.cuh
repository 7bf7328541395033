// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys by TMA: one box per panel of a linear cache, one per panel and block
// of one that consists of blocks.
#pragma once

#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/tma.cuh"

namespace attn::sm90 {

// A linear cache. By one thread.
template <class Traits>
class TokenBoxes {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

 public:
  __device__ __forceinline__ TokenBoxes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage), arguments_(arguments) {
    prefetch_map(arguments.k);
    prefetch_map(arguments.v);
  }

  __device__ __forceinline__ static constexpr bool leads() { return true; }
  __device__ __forceinline__ static constexpr bool in_leading_warp() { return true; }
  __device__ __forceinline__ static constexpr bool signals() { return true; }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    const Work& work = storage_.work[work_slot];
    first_token_ = work.key_token;
    kv_head_ = work.kv_head;
  }
  __device__ __forceinline__ void prepare(int) {}
  __device__ __forceinline__ void look_ahead(int) {}

  __device__ __forceinline__ void load_keys(int block, int slot) {
    load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], block);
  }

 private:
  template <class Panel, int kPanels>
  __device__ __forceinline__ void load(Panel (&panels)[kPanels],
                                       const TensorMap& map,
                                       Barrier& full,
                                       int block) {
    full.arrive_and_expect(sizeof(panels));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const int token = first_token_ + block * Traits::kCtaS;
      load_box(&panels[panel],
               map,
               full,
               BoxOrigin{panel * Traits::kPanelColumns, kv_head_, token},
               CacheHint::kEvictLast);
    }
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  int first_token_ = 0;  // of the sequence whose tile is being loaded
  int kv_head_ = 0;
};

// Where a box lies: two coordinates of its map, from the innermost dimension to the outermost:
//   paged   {columns, kv heads, rows of a block, blocks}: row and block
//   block   {columns, units of 16 bytes, rows of a box, units of 2^34 bytes}: the two parts of an
//           address, because the map covers all memory from address kMapBase on
struct BoxPlace {
  int minor;
  int major;
};

constexpr int64_t kMapBase = 128;
constexpr int kAddressBits = 30;  // of an address in units of 16 bytes: those in `minor`

__device__ __forceinline__ BoxPlace place_of(int64_t address) {
  const int64_t units = (address - kMapBase) >> 4;
  return {static_cast<int>(units & ((1 << kAddressBits) - 1)),
          static_cast<int>(units >> kAddressBits)};
}

// A paged or block cache, in boxes of box_rows() rows, each within one block of the cache. By
// kBoxWarps warps, which share the boxes: lane i of each looks up where box i lies, one block ahead
// of K, and one lane loads. Boxes behind the end of the sequence are left out: their entries in the
// block table may be wild.
template <class Traits>
class BlockBoxes {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

  static constexpr bool kByAddress = Traits::Config::kCache == CacheType::kBlock;

 public:
  __device__ __forceinline__ BlockBoxes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        arguments_(arguments),
        rows_(box_rows(block_len_of<Traits>(arguments.params), Traits::kCtaS)),
        splitter_(BlockSplitter::make(block_len_of<Traits>(arguments.params))) {
    if (leads()) {
      prefetch_map(arguments.k);
      prefetch_map(arguments.v);
    }
  }

  __device__ __forceinline__ bool leads() const { return in_leading_warp() && elect_one(); }
  __device__ __forceinline__ bool in_leading_warp() const { return warp() == 0; }

  // One lane of each warp, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return elect_one();
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    work_slot_ = work_slot;
    kv_head_ = warp_uniform(work().kv_head);
    if (!looked_ahead_) {
      look_up(work(), work().item.end_block - 1);
    }
    looked_ahead_ = false;
  }

  // If the work after this tile is known already, starts the look-up for it.
  __device__ __forceinline__ void look_ahead(int next_slot) {
    if (__all_sync(0xffffffffu, storage_.work_full.ended(next_slot))) {
      const Work& next = storage_.work[next_slot];
      if (warp_uniform(next.item.end_block) > 0) {
        look_up(next, next.item.end_block - 1);
        looked_ahead_ = true;
      }
    }
  }

  // K runs one block ahead of V, and the look-up one ahead of K.
  __device__ __forceinline__ void prepare(int block) {
    values_ = keys_;
    keys_ = place(next_entry_);
    key_block_ = block;
    if (block > work().item.first_block) {
      look_up(work(), block - 1);
    }
  }

  __device__ __forceinline__ void load_keys(int, int slot) {
    load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], keys_);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    Boxes boxes = block == key_block_ ? keys_ : values_;
    if constexpr (kByAddress) {
      // Behind the K rows of the block and head.
      boxes.place.minor += splitter_.block_len * (Cache::kRowBytes / 16);
      boxes.place.major += boxes.place.minor >> kAddressBits;
      boxes.place.minor &= (1 << kAddressBits) - 1;
    }
    load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], boxes);
  }

 private:
  // The boxes of a block of keys.
  struct Boxes {
    int count = 0;
    BoxPlace place{};  // of box `lane`
  };

  // The block table's part of that, on its way.
  struct Pending {
    int count = 0;
    int token = 0;
    typename Cache::Entry entry{};
  };

  __device__ __forceinline__ const Work& work() const { return storage_.work[work_slot_]; }
  __device__ __forceinline__ static int warp() {
    return warp_uniform(recomputed(threadIdx.x) / 32) - 1;
  }
  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }

  __device__ __forceinline__ void look_up(const Work& work, int block) {
    const int first_row = lane() * rows_;
    const int token = block * Traits::kCtaS + first_row;
    const bool exists = first_row < Traits::kCtaS && token < work.item.k_len;
    next_entry_.count = __popc(__ballot_sync(0xffffffffu, exists));
    next_entry_.token = token;
    if (exists) {
      next_entry_.entry = Cache::make(arguments_.params, work.sequence, 0).entry(token);
    }
  }

  __device__ __forceinline__ Boxes place(const Pending& pending) const {
    const int row = splitter_.row(pending.token);
    if constexpr (kByAddress) {
      const BlockIteratorParams& cache = arguments_.params.block_iter_params;
      return {pending.count,
              place_of(pending.entry + cache.layer_offset +
                       (static_cast<int64_t>(kv_head_) * 2 * splitter_.block_len + row) *
                           Cache::kRowBytes)};
    } else {
      return {pending.count, {row, pending.entry}};
    }
  }

  template <class Panel, int kPanels>
  __device__ __forceinline__ void load(Panel (&panels)[kPanels],
                                       const TensorMap& map,
                                       Barrier& full,
                                       const Boxes& boxes) {
    const int box_bytes = rows_ * (Traits::kPanelColumns * sizeof(T));
    const int count = warp_uniform(boxes.count);
    const int mine = (count - warp() + Traits::kBoxWarps - 1) / Traits::kBoxWarps;
    if (elect_one()) {
      full.arrive_and_expect(mine * box_bytes * kPanels);
    }
    char* target = reinterpret_cast<char*>(&panels[0]) + warp() * box_bytes;
#pragma unroll 1
    for (int box = warp(); box < count; box += Traits::kBoxWarps) {
      const int minor = __shfl_sync(0xffffffffu, boxes.place.minor, box);
      const int major = __shfl_sync(0xffffffffu, boxes.place.major, box);
      if (elect_one()) {
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
      target += Traits::kBoxWarps * box_bytes;
    }
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  const int rows_;  // of a box
  const BlockSplitter splitter_;

  int work_slot_ = 0;  // of the tile being loaded
  int kv_head_ = 0;
  bool looked_ahead_ = false;  // next_entry_ belongs to the tile after this

  int key_block_ = 0;  // the block of keys that keys_ belongs to
  Boxes keys_;
  Boxes values_;        // of the block after it
  Pending next_entry_;  // of the block before it
};

}  // namespace attn::sm90
