// SPDX-License-Identifier: Apache-2.0
// The shapes of a decode kernel, derived from its configuration and tile, and its shared memory.
#pragma once

#include "attn/cache_iterator.cuh"
#include "attn/config.h"
#include "attn/decode_ranges.cuh"
#include "attn/row_tile.cuh"
#include "attn/sm80/shared_tile.cuh"

namespace attn::sm80 {

template <class Config>
struct DecodeTraits {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  using Cache = CacheIterator<Config::kCache, T, Config::kHeadDim>;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRows = TileOf<Config>::kCtaQ;
  static constexpr int kCtaS = TileOf<Config>::kCtaS;
  static constexpr int kWarps = TileOf<Config>::kWarps;
  static constexpr int kStages = TileOf<Config>::kStages;
  static constexpr int kThreads = kWarps * 32;

  // A warp owns as many tokens of each stage as the wide side of a product has.
  static constexpr int kWarpTokens = 16;
  // Rows of Q lie on the narrow side.
  static constexpr int kRowTiles = kRows / 8;
  static constexpr int kDepthFragments = kHeadDim / 16;

  // Q stays in registers where the accumulators leave room for it.
  static constexpr int kAccumulators = kRows * kHeadDim / 32;
  static constexpr int kQueryRegisters = kRows * kHeadDim / 64;
  static constexpr bool kQueryInRegisters = kAccumulators + kQueryRegisters <= 112;

  static_assert(kCtaS == kWarps * kWarpTokens, "every warp has its tokens of a stage");
  static_assert(kRows % 8 == 0, "rows fill the narrow side of the products");
  static_assert(kRows % kWarps == 0, "every warp has as many rows to put together");

  using PieceTile = SharedTile<Tkv, kWarpTokens, kHeadDim>;
  using QueryTileStorage = SharedTile<T, (kRows > 16 ? kRows : 16), kHeadDim>;
};

// What one warp reads in one stage.
template <class Config>
struct Piece {
  typename DecodeTraits<Config>::PieceTile key;
  typename DecodeTraits<Config>::PieceTile value;
};

// The query tokens of a sequence. One that is finished, or does not exist, has none.
struct Tokens {
  int begin;  // row of q and out
  int count;
};

// What a CTA computes. It lies in shared memory because the loop over keys needs the registers.
struct CtaWork {
  RowTile tile;
  int column;
  int ranges;  // that the grid has for the column
  int range;   // the CTA's own
  RangeCut cut;
  UnitRange units;  // of the CTA
  bool streamed;    // L2 need not keep K and V
};

// Consecutive stages of one sequence, and their place among the splits of its tile.
struct Segment {
  Tokens tokens;
  int sequence;
  TileRange stages;
  int split;
  int splits;
  int rows;              // of the tile
  KeyRange seen;         // keys that some row sees
  KeyRange seen_by_all;  // keys that need no mask
};

// A row of the tile in the current segment.
struct alignas(16) RowPlace {
  int token;  // row of q and out
  int head;
  KeyRange seen;
};

// What a warp copies from: a sequence, and the keys of it that some row sees.
template <class Config>
struct alignas(16) CopySource {
  typename DecodeTraits<Config>::Cache cache;
  KeyRange seen;
};

// What a warp has counted of its share of the sequences.
struct WarpCount {
  int tiles;   // with units
  int most;    // units of the longest
  int fewest;  // of the shortest
  int tokens;  // most query tokens of a sequence
};

template <bool kInRegisters, class QueryTile>
struct QueryRows {
  QueryTile query;
};

template <class QueryTile>
struct QueryRows<true, QueryTile> {};

template <class Config>
struct DecodeStorage : QueryRows<DecodeTraits<Config>::kQueryInRegisters,
                                 typename DecodeTraits<Config>::QueryTileStorage> {
  using Traits = DecodeTraits<Config>;

  // Batches beyond 32 sequences are counted in this many chunks, by different warps.
  static constexpr int kChunks = 32;

  // The copies run up to kStages stages ahead, and know then of one segment more.
  static constexpr int kSegments = Traits::kStages + 2;

  Piece<Config> ring[Traits::kWarps][Traits::kStages];
  float2 max_sum[Traits::kWarps][Traits::kRows];  // of a warp's keys: max in log2 units, sum
  int chunk_units[kChunks];
  WarpCount counts[Traits::kWarps];
  RowPlace rows[Traits::kWarps][Traits::kRows];
  CopySource<Config> sources[Traits::kWarps];
  Segment segments[Traits::kWarps][kSegments];
  CtaWork work;
};

}  // namespace attn::sm80
