// SPDX-License-Identifier: Apache-2.0
// The words of configuration names as C++, for lists of kernels:
//
//   prefill_sm80_bf16_d192_v128_paged_causal   prefill<sm80, bf16, 192, 128, paged, causal>
//   decode_sm80_bf16_int8_d64_paged_causal     decode<sm80, bf16, 64, 64, paged, causal,
//                                                     DefaultTile, int8>
//   write_sm80_bf16_int8_d64_paged             write<sm80, bf16, 64, 64, paged, int8>
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/config.h"
#include "attn/kv_type.h"

namespace attn::words {

using sm70 = arch::Sm70;
using sm75 = arch::Sm75;
using sm80 = arch::Sm80;
using sm90 = arch::Sm90;

using f16 = half;
using bf16 = __nv_bfloat16;

using int8 = Int8;
using int4 = Int4;
using e4m3 = E4m3;

inline constexpr CacheType linear = CacheType::kLinear;
inline constexpr CacheType block = CacheType::kBlock;
inline constexpr CacheType paged = CacheType::kPaged;

inline constexpr Mask causal = Mask::kCausal;
inline constexpr Mask full = Mask::kFull;

template <class Arch,
          class T,
          int HeadDim,
          int HeadDimV,
          CacheType Cache,
          Mask AttentionMask,
          class Tile = DefaultTile,
          class Tkv = T>
using prefill = AttentionConfig<Arch, T, HeadDim, Cache, AttentionMask, Tkv, HeadDimV, Tile>;

namespace detail {

// Names say every axis; a decode kernel has one width and one mask.
template <class Arch,
          class T,
          int HeadDim,
          int HeadDimV,
          CacheType Cache,
          Mask AttentionMask,
          class Tile,
          class Tkv>
struct Decode {
  static_assert(HeadDimV == HeadDim, "decode kernels have one width");
  static_assert(AttentionMask == Mask::kCausal, "decode kernels are causal");
  using Type = DecodingConfig<Arch, T, HeadDim, Cache, Tkv, Tile>;
};

}  // namespace detail

template <class Arch,
          class T,
          int HeadDim,
          int HeadDimV,
          CacheType Cache,
          Mask AttentionMask,
          class Tile = DefaultTile,
          class Tkv = T>
using decode =
    typename detail::Decode<Arch, T, HeadDim, HeadDimV, Cache, AttentionMask, Tile, Tkv>::Type;

template <class Arch, class T, int HeadDim, int HeadDimV, CacheType Cache, class Tkv = T>
using write = WriteConfig<Arch, T, HeadDim, Cache, Tkv, HeadDimV>;

}  // namespace attn::words
