// SPDX-License-Identifier: Apache-2.0
// A configuration as a C++ type, and the kernel type that stands for it.
#pragma once

#include "attn/params.h"
#include "attn/types.h"

namespace attn {

// The tile that a configuration runs with when none is named.
struct DefaultTile {};

// A tile by its shape: query rows, keys, and a variant where one shape has several.
//   t192x128   ->   Tile<192, 128>
template <int CtaQ, int CtaS, int Variant = 0>
struct Tile {};

// A kernel: see below.
template <class Config>
struct AttentionUniversal;

// What a prefill kernel is compiled for. Tkv is the element type of the cache.
//
//   Sm80, half, 128, kBlock   ->   prefill_sm80_f16_d128_block_causal
template <class Arch_,
          class T_,
          int HeadDim,
          CacheType Cache,
          Mask AttentionMask = Mask::kCausal,
          class Tkv_ = T_,
          int HeadDimV = HeadDim,
          class Tile_ = DefaultTile>
struct AttentionConfig {
  using Arch = Arch_;
  using T = T_;
  using Tkv = Tkv_;
  using Tile = Tile_;
  using Kernel = AttentionUniversal<AttentionConfig>;
  static constexpr Mode kMode = Mode::kPrefill;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kHeadDimV = HeadDimV;
  static constexpr CacheType kCache = Cache;
  static constexpr Mask kMask = AttentionMask;

  static_assert(kHeadDim % 16 == 0 && kHeadDimV % 16 == 0, "a head is a multiple of 16 elements");
};

// The tile that a unit is compiled with. Specialised by the unit: the numbers come from the
// generator, which knows their limits.
template <class Config>
struct TileOf;

// What a kernel takes by value, and whether tensor maps are part of it.
template <Mode kMode, class Arch, class T>
struct ArgumentsOf {
  using Type = Arguments<T>;
  static constexpr bool kHasMaps = false;
};

template <class T>
struct ArgumentsOf<Mode::kPrefill, arch::Sm90, T> {
  using Type = TmaArguments<T>;
  static constexpr bool kHasMaps = true;
};

template <class Arch, class T>
struct ArgumentsOf<Mode::kDecode, Arch, T> {
  using Type = DecodeArguments<T>;
  static constexpr bool kHasMaps = false;
};

// A kernel: what it takes, what it keeps in shared memory. Only a unit completes SharedStorage.
template <class Config_>
struct AttentionUniversal {
  using Config = Config_;
  using ParamType = AttentionParams<typename Config::T>;
  using Arguments =
      typename ArgumentsOf<Config::kMode, typename Config::Arch, typename Config::T>::Type;
  struct SharedStorage;
};

// What a decode kernel is compiled for: one to eight query tokens of each sequence, causal among
// themselves. A tile is the rows that a CTA packs, the keys of a stage, and the stages of its ring
// where that is not the default.
//
//   Sm80, half, 128, kBlock   ->   decode_sm80_f16_d128_block_causal
template <class Arch_,
          class T_,
          int HeadDim,
          CacheType Cache,
          class Tkv_ = T_,
          class Tile_ = DefaultTile>
struct DecodingConfig {
  using Arch = Arch_;
  using T = T_;
  using Tkv = Tkv_;
  using Tile = Tile_;
  using Kernel = AttentionUniversal<DecodingConfig>;
  static constexpr Mode kMode = Mode::kDecode;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kHeadDimV = HeadDim;
  static constexpr CacheType kCache = Cache;
  static constexpr Mask kMask = Mask::kCausal;

  static_assert(kHeadDim % 16 == 0, "a head is a multiple of 16 elements");
};

// What a cache writer is compiled for. It writes rows of T into a cache of Tkv.
//
//   Sm80, half, 128, kPaged, Int8   ->   write_sm80_f16_int8_d128_paged
template <class Arch_,
          class T_,
          int HeadDim,
          CacheType Cache,
          class Tkv_ = T_,
          int HeadDimV = HeadDim>
struct WriteConfig;

template <class Config_>
struct CacheWriter {
  using Config = Config_;
  using ParamType = AttentionParams<typename Config::T>;
  using Arguments = ParamType;
  struct SharedStorage;
};

template <class Arch_, class T_, int HeadDim, CacheType Cache, class Tkv_, int HeadDimV>
struct WriteConfig {
  using Arch = Arch_;
  using T = T_;
  using Tkv = Tkv_;
  using Kernel = CacheWriter<WriteConfig>;
  static constexpr Mode kMode = Mode::kWrite;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kHeadDimV = HeadDimV;
  static constexpr CacheType kCache = Cache;
};

// The kernel that merges the splits of a row: one for each element type and width of V.
template <class T_, int HeadDimV>
struct ReduceConfig {
  using T = T_;
  static constexpr int kHeadDimV = HeadDimV;
};

}  // namespace attn
