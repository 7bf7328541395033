// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys by TMA, of a linear cache: one box per panel.
#pragma once

#include "attn/sm90/arguments.h"
#include "attn/sm90/loader_source.cuh"
#include "attn/sm90/resident_keys.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/tma.cuh"

namespace attn::sm90 {

// By one thread. kKeeps: a block that lies in its slot is not loaded again.
template <class Traits, bool kKeeps>
class TokenBoxes : public LoaderSource {
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
    const Work<Traits::kRowGroups>& work = storage_.work[work_slot];
    first_token_ = work.key_token;
    kv_head_ = work.kv_head;
    resident_.begin_tile(work.sequence, kv_head_);
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    if (resident_.has_keys(slot, block)) {
      storage_.k_full[slot].arrive();
    } else {
      load(storage_.k[slot].panel, arguments_.k, storage_.k_full[slot], block);
    }
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    if (resident_.has_values(slot, block)) {
      storage_.v_full[slot].arrive();
    } else {
      load(storage_.v[slot].panel, arguments_.v, storage_.v_full[slot], block);
    }
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
  ResidentKeys<Traits::kLoadedStages, kKeeps> resident_;
};

}  // namespace attn::sm90
