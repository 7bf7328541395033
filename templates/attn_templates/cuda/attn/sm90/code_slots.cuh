// SPDX-License-Identifier: Apache-2.0
// What a quantised cache takes in shared memory beside the slots that the loader fills with codes,
// and how the expander goes through both.
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
  __device__ __forceinline__ uint32_t* keys_of(int) { return nullptr; }
  __device__ __forceinline__ uint32_t* values_of(int) { return nullptr; }
};

template <class Traits>
struct PairSlots<Traits, true> {
  alignas(16) uint32_t keys[Traits::kLoadedStages][Traits::kCtaS];
  alignas(16) uint32_t values[Traits::kLoadedStages][Traits::kCtaS];

  __device__ __forceinline__ uint32_t* keys_of(int slot) { return keys[slot]; }
  __device__ __forceinline__ uint32_t* values_of(int slot) { return values[slot]; }
};

// Places in the ring that is read and in the one that is written, which move together. Where both
// have 2^n slots, one number tells slots and phases.
template <int kRead, int kWritten>
inline constexpr bool kAreCounted = (kRead & (kRead - 1)) == 0 && (kWritten & (kWritten - 1)) == 0;

template <int kRead, int kWritten, bool kIsCounted = kAreCounted<kRead, kWritten>>
class RingPair {
 public:
  __device__ __forceinline__ int from() const { return read_.slot(); }
  __device__ __forceinline__ uint32_t from_phase() const { return read_.phase(); }
  __device__ __forceinline__ int to() const { return written_.slot(); }
  __device__ __forceinline__ uint32_t to_phase() const { return written_.phase(); }

  __device__ __forceinline__ void advance() {
    read_.advance();
    written_.advance();
  }

 private:
  PackedRingPosition<kRead> read_;
  PackedRingPosition<kWritten> written_;
};

template <int kRead, int kWritten>
class RingPair<kRead, kWritten, true> {
 public:
  __device__ __forceinline__ int from() const { return count_ % kRead; }
  __device__ __forceinline__ uint32_t from_phase() const { return count_ / kRead % 2; }
  __device__ __forceinline__ int to() const { return count_ % kWritten; }
  __device__ __forceinline__ uint32_t to_phase() const { return count_ / kWritten % 2; }
  __device__ __forceinline__ void advance() { ++count_; }

 private:
  uint32_t count_ = 0;  // blocks of keys
};

}  // namespace attn::sm90
