// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys by TMA: one box per panel of a linear cache, one per panel and block
// of a paged one.
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
  static constexpr bool kDefers = false;

  __device__ __forceinline__ TokenBoxes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage), arguments_(arguments) {
    prefetch_map(arguments.k);
    prefetch_map(arguments.v);
  }

  __device__ __forceinline__ static constexpr bool leads() { return true; }
  __device__ __forceinline__ static constexpr bool in_leading_warp() { return true; }
  __device__ __forceinline__ static constexpr bool signals() { return true; }
  __device__ __forceinline__ void publish() {}

  __device__ __forceinline__ void begin_tile(int work_slot) { work_slot_ = work_slot; }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], block);
  }

 private:
  __device__ __forceinline__ const Work& work() const { return storage_.work[work_slot_]; }

  template <class Panel, int kPanels>
  __device__ __forceinline__ void load(Panel (&panels)[kPanels],
                                       const TensorMap& map,
                                       Barrier& full,
                                       int block) {
    full.arrive_and_expect(sizeof(panels));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const int token = work().key_token + block * Traits::kCtaS;
      load_box(&panels[panel],
               map,
               full,
               BoxOrigin{panel * Traits::kPanelColumns, work().kv_head, token},
               CacheHint::kEvictLast);
    }
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  int work_slot_ = 0;  // of the tile being loaded
};

// A paged cache, in boxes of box_rows() rows, each within one block of the cache. By one warp: lane
// i looks up the block of box i, lane 0 loads. Boxes behind the end of the sequence are left out:
// their entries in the block table may be wild.
template <class Traits>
class BlockBoxes {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

 public:
  static constexpr bool kDefers = false;

  __device__ __forceinline__ BlockBoxes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        arguments_(arguments),
        lane_(threadIdx.x % 32),
        rows_(box_rows(arguments.params.paged_iter_params.block_len, Traits::kCtaS)) {
    if (leads()) {
      prefetch_map(arguments.k);
      prefetch_map(arguments.v);
    }
  }

  __device__ __forceinline__ bool leads() const { return lane_ == 0; }
  __device__ __forceinline__ static constexpr bool in_leading_warp() { return true; }
  __device__ __forceinline__ void publish() {}

  // One lane, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return lane_ == 0;
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    work_slot_ = work_slot;
    look_up(work().item.end_block - 1);
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    // K runs one block ahead of V, and the look-up one ahead of K.
    value_entry_ = key_entry_;
    key_entry_ = next_entry_;
    key_block_ = block;
    if (block > work().item.first_block) {
      look_up(block - 1);
    }
    load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], block, key_entry_);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    const int entry = block == key_block_ ? key_entry_ : value_entry_;
    load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], block, entry);
  }

 private:
  __device__ __forceinline__ const Work& work() const { return storage_.work[work_slot_]; }

  __device__ __forceinline__ void look_up(int block) {
    const int first_row = lane_ * rows_;
    const int token = block * Traits::kCtaS + first_row;
    if (first_row < Traits::kCtaS && token < work().item.k_len) {
      const auto cache = Traits::Cache::make(arguments_.params, work().sequence, 0);
      next_entry_ = cache.entry(token);
    }
  }

  template <class Panel, int kPanels>
  __device__ __forceinline__ void load(
      Panel (&panels)[kPanels], const TensorMap& map, Barrier& full, int block, int entry) {
    constexpr int kRowBytes = Traits::kPanelColumns * sizeof(T);
    const int first_token = block * Traits::kCtaS;
    const int boxes = (min(Traits::kCtaS, work().item.k_len - first_token) + rows_ - 1) / rows_;
    if (leads()) {
      full.arrive_and_expect(boxes * rows_ * kRowBytes * kPanels);
    }
    const auto splitter = BlockSplitter::make(arguments_.params.paged_iter_params.block_len);
#pragma unroll 1
    for (int box = 0; box < boxes; ++box) {
      const int block_id = __shfl_sync(0xffffffffu, entry, box);
      const int row_in_block = splitter.row(first_token + box * rows_);
      if (leads()) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          load_box(
              reinterpret_cast<char*>(&panels[panel]) + box * rows_ * kRowBytes,
              map,
              full,
              BlockBoxOrigin{panel * Traits::kPanelColumns, work().kv_head, row_in_block, block_id},
              CacheHint::kEvictLast);
        }
      }
    }
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  const int lane_;
  const int rows_;  // of a box

  int work_slot_ = 0;  // of the tile being loaded

  // Of box `lane`: what the block table says.
  int key_block_ = 0;  // the block of keys that key_entry_ belongs to
  int key_entry_ = 0;
  int value_entry_ = 0;  // of the block after it
  int next_entry_ = 0;   // of the block before it, on its way
};

}  // namespace attn::sm90
