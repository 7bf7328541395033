// SPDX-License-Identifier: Apache-2.0
// What a quantised cache takes in shared memory beside the slots that the loader fills with codes.
#pragma once

#include "attn/sm90/barriers.cuh"

namespace attn::sm90 {

// The slots of K and V that the consumers read ..
template <class Traits, bool kIsQuantised = Traits::Kv::kIsQuantised>
struct ElementSlots {};

template <class Traits>
struct ElementSlots<Traits, true> {
  using Panel = typename Traits::T[Traits::kCtaS * Traits::kPanelColumns];

  struct alignas(1024) Keys {
    Panel panel[Traits::kPanels];
  };
  struct alignas(1024) Values {
    Panel panel[Traits::kPanelsV];
  };
  struct Slots {
    Keys k[Traits::kStages];
    Values v[Traits::kStages];
  };

  Slots elements;
};

// .. their barriers ..
template <class Traits, bool kIsQuantised = Traits::Kv::kIsQuantised>
struct ElementBarriers {};

template <class Traits>
struct ElementBarriers<Traits, true> {
  Barrier k_full[Traits::kStages];
  Barrier k_empty[Traits::kStages];
  Barrier v_full[Traits::kStages];
  Barrier v_empty[Traits::kStages];
};

// .. and (scale, zero) of each row.
template <class Traits, bool kHasPairs = Traits::Kv::kHasPairs>
struct PairSlots {
  __device__ __forceinline__ const uint32_t* keys_of(int) const { return nullptr; }
  __device__ __forceinline__ const uint32_t* values_of(int) const { return nullptr; }
};

template <class Traits>
struct PairSlots<Traits, true> {
  alignas(16) uint32_t keys[Traits::kLoadedStages][Traits::kCtaS];
  alignas(16) uint32_t values[Traits::kLoadedStages][Traits::kCtaS];

  __device__ __forceinline__ const uint32_t* keys_of(int slot) const { return keys[slot]; }
  __device__ __forceinline__ const uint32_t* values_of(int slot) const { return values[slot]; }
};

}  // namespace attn::sm90
