// SPDX-License-Identifier: Apache-2.0
// Which blocks of keys lie in the slots of K and V: tiles in turn that see the same few keys need
// them loaded once.
#pragma once

#include "attn/types.h"

namespace attn::sm90 {

// Of the sequence and KV head whose tiles are being loaded. kKeeps false: of long keys, which pass
// through the slots, so that nothing is looked up and none of the loader's time goes to it.
template <int kSlots, bool kKeeps>
class ResidentKeys {
  // A byte for each slot: 1 + its block, or 0, which stands for any other.
  static constexpr uint32_t kMostBlocks = 255;

  static_assert(kSlots <= 4, "a word has a byte for each slot");

 public:
  // Ahead of a tile.
  __device__ __forceinline__ void begin_tile(int sequence, int kv_head) {
    if (kKeeps && (sequence != sequence_ || kv_head != kv_head_)) {
      keys_ = values_ = 0;
      sequence_ = sequence;
      kv_head_ = kv_head;
    }
  }

  // Whether a slot that is to be filled with a block of K, or of V, has it already.
  __device__ __forceinline__ bool has_keys(int slot, int block) {
    return kKeeps && put(keys_, slot, block);
  }
  __device__ __forceinline__ bool has_values(int slot, int block) {
    return kKeeps && put(values_, slot, block);
  }

 private:
  __device__ __forceinline__ static bool put(uint32_t& slots, int slot, int block) {
    const int shift = slot * 8;
    const uint32_t held = slots >> shift & 0xff;
    const uint32_t mark = static_cast<uint32_t>(block) < kMostBlocks ? block + 1 : 0;
    slots = slots & ~(0xffu << shift) | mark << shift;
    return mark != 0 && held == mark;
  }

  int sequence_ = -1;
  int kv_head_ = -1;
  uint32_t keys_ = 0;
  uint32_t values_ = 0;
};

}  // namespace attn::sm90
