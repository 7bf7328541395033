// SPDX-License-Identifier: Apache-2.0
// Shared memory as a consumer sees it: slots that the loader fills, and that are handed back.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm90/key_source.cuh"
#include "attn/sm90/shared_storage.cuh"

namespace attn::sm90 {

// One consumer's place in the rings of Q, K and V.
template <class Traits>
class FilledSlots {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

  static constexpr bool kThroughQuery = Traits::kOutputRoute == OutputRoute::kThroughQuery;

 public:
  // `signals` in one thread of the warpgroup. A product that has ended has ended for all four
  // warps, so one thread hands a slot back for all of them.
  __device__ __forceinline__
  FilledSlots(Storage& storage, const AttentionParams<T>& params, int consumer, bool signals)
      : storage_(storage),
        params_(params),
        row_group_(consumer % Traits::kRowGroups),
        signals_(signals),
        keys_{consumer / Traits::kRowGroups},
        values_{consumer / Traits::kRowGroups} {}

  // --- what lies there -------------------------------------------------------------------------

  __device__ __forceinline__ const WorkItem& item() const {
    return storage_.items[kThroughQuery ? queries_.slot : queries_.phase][row_group_];
  }

  __device__ __forceinline__ int query_slot() const { return queries_.slot; }

  // Recomputed: an address kept through a tile would stay in an ordinary register, and each
  // descriptor made of it would have to be moved to a uniform one.
  __device__ __forceinline__ uint32_t queries() const {
    return recomputed(shared_address(&storage_.q[queries_.slot][row_group_]));
  }
  __device__ __forceinline__ uint32_t keys() const {
    return shared_address(&slots().k[keys_.slot]);
  }
  __device__ __forceinline__ uint32_t values() const {
    return address_in_cta(&slots().v[values_.slot]);
  }
  __device__ __forceinline__ char* value_rows() const {
    return reinterpret_cast<char*>(&slots().v[values_.slot]);
  }

  // --- filled by the loader --------------------------------------------------------------------

  // Q of a tile and its item.
  __device__ __forceinline__ void wait_queries() const {
    storage_.q_full[queries_.slot][row_group_].wait(queries_.phase);
  }

  __device__ __forceinline__ void wait_keys() const {
    barriers().k_full[keys_.slot].wait(keys_.phase);
  }

  __device__ __forceinline__ void wait_values() const {
    barriers().v_full[values_.slot].wait(values_.phase);
  }

  // Behind the end of the sequence; of codes, they are numbers at least.
  __device__ __forceinline__ bool values_are_zero_filled() const {
    return Traits::Kv::kIsQuantised || key_source<Traits>(params_) == KeySource::kGathered;
  }

  // --- handed back -----------------------------------------------------------------------------

  __device__ __forceinline__ void release_keys() {
    if (signals_) {
      barriers().k_empty[keys_.slot].arrive();
    }
    keys_.advance();
  }

  __device__ __forceinline__ void release_values() {
    if (signals_) {
      barriers().v_empty[values_.slot].arrive();
    }
    values_.advance();
  }

  // After the last Q.K of a tile, unless the output still needs the rows of Q: then they are handed
  // back warp by warp when TMA has read them.
  __device__ __forceinline__ void release_queries() {
    if (!kThroughQuery && signals_) {
      storage_.q_empty[queries_.slot][row_group_].arrive();
    }
  }

  __device__ __forceinline__ void next_queries() { queries_.advance(); }

 private:
  // Where CTAs may be a cluster, an address begins with the place of the CTA. In a descriptor it
  // would be added to the distance of panels, which of Q and K no product looks at.
  __device__ __forceinline__ static uint32_t address_in_cta(const void* slot) {
    constexpr uint32_t kCtaBytes = 1 << 18;
    const uint32_t address = shared_address(slot);
    return Traits::kMergesSplits ? address % kCtaBytes : address;
  }

  // K and V lie where the loader has put them, or its codes have become elements.
  __device__ __forceinline__ auto& slots() const {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.elements;
    } else {
      return storage_;
    }
  }

  __device__ __forceinline__ auto& barriers() const {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.expanded;
    } else {
      return storage_;
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const int row_group_;
  const bool signals_;

  RingPosition<Traits::kQuerySlots> queries_;
  RingPosition<Traits::kStages, Traits::kKeyGroups> keys_;
  RingPosition<Traits::kStages, Traits::kKeyGroups> values_;
};

}  // namespace attn::sm90
