// SPDX-License-Identifier: Apache-2.0
// One row of K or V on its way into a cache, quantised where the cache is: what the cache writer
// and a decode kernel that appends have in common, so that both leave the same bits.
#pragma once

#include "attn/kv_type.h"
#include "attn/sm80/quantise.cuh"

namespace attn::sm80 {

// Writes one row, if there is one, of which lane `lane` of kLanes, which are neighbours in a warp,
// has the pieces `x`. Called by whole warps.
//   row    of the cache        pair    its (scale, zero), where the cache has pairs
//   scale  1 / k_scale or 1 / v_scale of e4m3
template <class Kv, int kPieces, class T, int kLanes, int kSteps>
__device__ __forceinline__ void write_row(const RowPieces<T, kLanes, kSteps>& x,
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
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (row == nullptr || !x.template has<kPieces>(step, lane)) {
      continue;
    }
    char* const to = const_cast<char*>(row) + x.piece(step, lane) * Kv::kBits;
    if constexpr (Kv::kHasPairs) {
      *reinterpret_cast<Codes<Kv::kBits>*>(to) = integer_codes<Kv::kBits>(x.steps[step], scaled);
    } else if constexpr (Kv::kIsQuantised) {
      *reinterpret_cast<Codes<8>*>(to) = e4m3_codes(x.steps[step], scale);
    } else {
      *reinterpret_cast<uint4*>(to) = x.steps[step].vector;
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
