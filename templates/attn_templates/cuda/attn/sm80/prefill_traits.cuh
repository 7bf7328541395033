// SPDX-License-Identifier: Apache-2.0
// The shapes of a prefill kernel, derived from its configuration and tile, and its shared memory.
#pragma once

#include "attn/config.h"
#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/sm80/code_tiles.cuh"
#include "attn/sm80/shared_tile.cuh"

namespace attn::sm80 {

template <class Config>
struct PrefillTraits {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  using Kv = KvTraits<T, Tkv>;
  using Cache = CacheIterator<Config::kCache, T, Config::kHeadDim, Tkv, BlockDivider>;
  using Pairs = PairIterator<Config::kCache, T, Config::kHeadDim, Tkv>;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kHeadDimV = Config::kHeadDimV;
  static constexpr int kCtaQ = TileOf<Config>::kCtaQ;
  static constexpr int kCtaS = TileOf<Config>::kCtaS;
  static constexpr int kWarps = TileOf<Config>::kWarps;
  static constexpr int kStages = TileOf<Config>::kStages;
  static constexpr int kThreads = kWarps * 32;
  // Tiles of T. Codes are copied ahead as codes, and expanded into one.
  static constexpr int kSlots = Kv::kIsQuantised ? 1 : kStages;

  // A warp owns kWarpRows rows of Q and of the output, and multiplies them with every key of the
  // tile.
  static constexpr int kWarpRows = kCtaQ / kWarps;

  // Shapes in 16x16 fragments.
  static constexpr int kRowFragments = kWarpRows / 16;
  static constexpr int kKeyFragments = kCtaS / 16;
  static constexpr int kDepthFragments = kHeadDim / 16;
  static constexpr int kValueFragments = kHeadDimV / 16;

  // When a warp takes the exponentials of a tile (measured on an H100, where each is the fastest):
  //   kAtOnce        32 rows: all of them before the product with V; two CTAs on an SM hide each
  //                  other's, and the scores make room for P
  //   kBySteps       16 rows, one CTA on an SM: 16 keys at a time, ahead of their product with V
  //   kAfterMaximum  16 rows, two CTAs: short tiles, whose maximum costs less than steps do
  enum class Form { kAtOnce, kBySteps, kAfterMaximum };
  static constexpr Form kForm = kRowFragments == 2                ? Form::kAtOnce
                                : TileOf<Config>::kCtasPerSm == 1 ? Form::kBySteps
                                                                  : Form::kAfterMaximum;
  static constexpr int kStepFragments = kForm == Form::kBySteps ? 1 : kKeyFragments;

  // Whether the copies of a tile start between the scores and the exponentials of the one before;
  // otherwise ahead of the scores. Measured: 3 % faster by steps, and after the maximum over a
  // linear cache, but 9 % slower where rows are gathered then; slower at once.
  static constexpr bool kCopiesBehindScores =
      kForm == Form::kBySteps || (kForm == Form::kAfterMaximum && !Cache::kGathered);

  // Q stays in registers where scores and output leave room for it; otherwise its fragments are
  // read again for every tile. Beside the accumulators, each row fragment needs about 30 registers
  // for its softmax state, fragments in flight and addresses (measured: one step more spills).
  static constexpr int kAccumulators = kRowFragments * 8 * (kKeyFragments + kValueFragments);
  static constexpr int kQueryRegisters = kRowFragments * 4 * kDepthFragments;
  static constexpr bool kQueryInRegisters =
      kAccumulators + kQueryRegisters + 30 * kRowFragments <= 240;

  static_assert(kCtaQ % (kWarps * 16) == 0, "every warp owns whole fragments of rows");
  static_assert(kCtaS % 16 == 0, "a tile of keys is whole fragments");
  static_assert(kStages >= 2, "one tile is computed while the next is copied");
  static_assert(!Kv::kIsQuantised || kStages == 2, "there is one tile of codes to copy ahead into");

  // The output leaves through the rows of Q, so they are as wide as the wider of the two.
  using QueryTileStorage = SharedTile<T, kCtaQ, (kHeadDim > kHeadDimV ? kHeadDim : kHeadDimV)>;
  using KeyTileStorage = SharedTile<T, kCtaS, kHeadDim>;
  using ValueTileStorage = SharedTile<T, kCtaS, kHeadDimV>;
  // Rows as they lie in the cache, 16 bits at a time: codes, or the tiles above.
  using KeyCopyTarget = SharedTile<T, kCtaS, kHeadDim * Kv::kBits / 16>;
  using ValueCopyTarget = SharedTile<T, kCtaS, kHeadDimV * Kv::kBits / 16>;
};

// What the CTA works on. It lies in shared memory because the loop over keys needs every register
// for arithmetic.
template <class Cache>
struct Work {
  QueryTile tile;
  TileRange keys;  // tiles of keys of this split
  Cache cache;
  VisibleKeys visible;
  int splits;  // of this query tile

  // The first that some row of the tile sees. In front of a window nothing need be there: rows may
  // hold anything, and entries of a block table may be wild.
  int first_key;
  int whole_begin;  // tiles of `keys` from here on have only keys from first_key on
};

// The keys that some row of a warp sees, and those that all of them see, which need no mask.
struct alignas(16) WarpKeys {
  KeyRange some;
  KeyRange all;

  __device__ __forceinline__ bool touch(int begin, int end) const {
    return begin < some.end && end > some.begin;
  }

  __device__ __forceinline__ bool cover(int begin, int end) const {
    return begin >= all.begin && end <= all.end;
  }
};

template <class Config>
struct PrefillStorage : CodeTiles<PrefillTraits<Config>> {
  using Traits = PrefillTraits<Config>;

  typename Traits::QueryTileStorage query;  // at the end: the output
  typename Traits::KeyTileStorage key[Traits::kSlots];
  typename Traits::ValueTileStorage value[Traits::kSlots];
  alignas(128) WarpKeys seen[Traits::kWarps];
  alignas(128) Work<typename Traits::Cache> work;
};

}  // namespace attn::sm80
