// SPDX-License-Identifier: Apache-2.0
// One row of K or V on its way into a cache, quantised where the cache is: what the cache writer
// and a decode kernel that appends have in common, so that both leave the same bits.
#pragma once

#include "attn/kv_type.h"
#include "attn/sm80/quantise.cuh"

namespace attn::sm80 {

// Writes one row, if there is one: lane `lane` of its kLanes, which are neighbours in a warp, has
// piece `lane` of it, `x`, where there are so many. Called by whole warps.
//   row    of the cache        pair    its (scale, zero), where the cache has pairs
//   scale  1 / k_scale or 1 / v_scale of e4m3
template <class Kv, int kLanes, int kPieces, class T>
__device__ __forceinline__ void write_row(
    const Elements<T>& x, int lane, const char* row, const char* pair, float scale) {
  const bool is_written = row != nullptr && lane < kPieces;
  char* const to = const_cast<char*>(row) + lane * Kv::kBits;
  if constexpr (Kv::kHasPairs) {
    const uint32_t both = extremes<kLanes>(x, lane < kPieces, T{});
    const auto scaled = RowScale<T>::template make<Kv::kLevels>(both);
    if (is_written) {
      *reinterpret_cast<Codes<Kv::kBits>*>(to) = integer_codes<Kv::kBits>(x, scaled);
    }
    if (is_written && lane == 0) {
      T* const place = reinterpret_cast<T*>(const_cast<char*>(pair));
      place[0] = scaled.scale;
      place[1] = scaled.zero;
    }
  } else if (is_written) {
    if constexpr (Kv::kIsQuantised) {
      *reinterpret_cast<Codes<8>*>(to) = e4m3_codes(x, scale);
    } else {
      *reinterpret_cast<uint4*>(to) = x.vector;
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
