// SPDX-License-Identifier: Apache-2.0
// One row of K or V on its way into a cache, quantised where the cache is: what the cache writer
// and a decode kernel that appends have in common, so that both leave the same bits.
#pragma once

#include "attn/kv_type.h"
#include "attn/sm80/quantise.cuh"

namespace attn::sm80 {

// So many that one store writes.
template <class Part, int kParts>
struct alignas(sizeof(Part) * kParts) SideBySide {
  Part parts[kParts];
};

// Rows pass through L2 on their way to memory, and need not stay there.
template <class Value>
__device__ __forceinline__ void store_streamed(char* to, const Value& value) {
  if constexpr (sizeof(Value) == 4) {
    __stcs(reinterpret_cast<unsigned*>(to), reinterpret_cast<const unsigned&>(value));
  } else if constexpr (sizeof(Value) == 8) {
    __stcs(reinterpret_cast<uint2*>(to), reinterpret_cast<const uint2&>(value));
  } else {
    static_assert(sizeof(Value) == 16, "one store has 4, 8 or 16 bytes");
    __stcs(reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4&>(value));
  }
}

// What a cache keeps of a piece.
template <class Kv, class T>
__device__ __forceinline__ Codes<Kv::kBits> codes_of(const Elements<T>& x,
                                                     const RowScale<T>& scaled,
                                                     float scale) {
  if constexpr (Kv::kHasPairs) {
    return integer_codes<Kv::kBits>(x, scaled);
  } else {
    return e4m3_codes(x, scale);
  }
}

// Writes one row, if there is one, of which lane `lane` of kLanes, which are neighbours in a warp,
// has the pieces `x`. Called by whole warps.
//   row    of the cache        pair    its (scale, zero), where the cache has pairs
//   scale  1 / k_scale or 1 / v_scale of e4m3
template <class Kv, int kPieces, class T, int kLanes, int kSteps, bool kAreNeighbours>
__device__ __forceinline__ void write_row(const RowPieces<T, kLanes, kSteps, kAreNeighbours>& x,
                                          int lane,
                                          const char* row,
                                          const char* pair,
                                          float scale) {
  RowScale<T> scaled;
  if constexpr (Kv::kHasPairs) {
    scaled = RowScale<T>::template make<Kv::kLevels>(extremes<kPieces>(x, lane));
    if (row != nullptr && lane == 0) {
      *reinterpret_cast<uint32_t*>(const_cast<char*>(pair)) = scaled.pair();
    }
  }
  if (row == nullptr) {
    return;
  }
  char* const first = const_cast<char*>(row) + x.piece(0, lane) * Kv::kBits;
  if constexpr (kAreNeighbours) {
    SideBySide<Codes<Kv::kBits>, kSteps> all;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      all.parts[step] = codes_of<Kv>(x.steps[step], scaled, scale);
    }
    store_streamed(first, all);
  } else {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (!x.template has<kPieces>(step, lane)) {
        continue;
      }
      char* const to = first + step * kLanes * Kv::kBits;
      if constexpr (Kv::kIsQuantised) {
        store_streamed(to, codes_of<Kv>(x.steps[step], scaled, scale));
      } else {
        store_streamed(to, x.steps[step].vector);
      }
    }
  }
}

// 1 / scale of a KV head of an e4m3 cache.
template <class Kv>
__device__ __forceinline__ float inverse_scale(const float* scales, int stride, int kv_head) {
  if constexpr (Kv::kType == KvType::kE4m3) {
    return scales == nullptr ? 1.0f : __fdiv_rn(1.0f, scales[kv_head * stride]);
  } else {
    return 1.0f;
  }
}

}  // namespace attn::sm80
