// SPDX-License-Identifier: Apache-2.0
// The shapes of a decode kernel, derived from its configuration and tile, and its shared memory.
#pragma once

#include "attn/config.h"
#include "attn/decode_ranges.cuh"
#include "attn/key_range.cuh"
#include "attn/pair_iterator.cuh"
#include "attn/row_tile.cuh"
#include "attn/sm80/decode_halves.cuh"
#include "attn/sm80/shared_tile.cuh"

namespace attn::sm80 {

template <class T, int kRows, int kColumns, bool kIsPacked>
struct UnitTile {
  using Type = SharedTile<T, kRows, kColumns>;
};

template <class T, int kRows, int kColumns>
struct UnitTile<T, kRows, kColumns, true> {
  using Type = PackedTile<T, kRows, kColumns>;
};

template <class Config>
struct DecodeTraits {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  using Kv = KvTraits<T, Tkv>;
  using Cache = CacheIterator<Config::kCache, T, Config::kHeadDim, Tkv>;
  using Pairs = PairIterator<Config::kCache, T, Config::kHeadDim, Tkv>;
  using Product = typename ProductType<T, Tkv>::Type;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRows = TileOf<Config>::kCtaQ;
  static constexpr int kCtaS = TileOf<Config>::kCtaS;
  static constexpr int kWarps = TileOf<Config>::kWarps;
  static constexpr int kStages = TileOf<Config>::kStages;
  static constexpr int kThreads = kWarps * 32;

  // A warp owns some tokens of each stage: units of as many as the wide side of a product has.
  static constexpr int kUnitTokens = 16;
  static constexpr int kWarpTokens = kCtaS / kWarps;
  static constexpr int kUnits = kWarpTokens / kUnitTokens;
  // Units that take a step of the softmax together, so that the latencies of one pass behind the
  // other, where registers allow.
  static constexpr int kTogether = kRows <= 16 ? kUnits : 1;
  // Elements of the cache in 16 bits.
  static constexpr int kPacked = 16 / Kv::kBits;
  // Rows of Q lie on the narrow side.
  static constexpr int kRowTiles = kRows / 8;
  static constexpr int kDepthFragments = kHeadDim / 16;
  // Of rows as they lie in the cache.
  static constexpr int kLoadedFragments = kDepthFragments / kPacked;

  // Q stays in registers where the accumulators leave room for it.
  static constexpr int kAccumulators = kRows * kHeadDim / 32;
  static constexpr int kQueryRegisters = kRows * kHeadDim / 64;
  static constexpr bool kQueryInRegisters = kAccumulators + kQueryRegisters <= 112;

  // Registers for what would otherwise lie in shared memory, or come later.
  static constexpr bool kHasSpareRegisters = kRows == 8 && TileOf<Config>::kCtasPerSm <= 2;

  static_assert(kCtaS == kWarps * kUnits * kUnitTokens, "every warp has whole units of a stage");
  static_assert(kHeadDim % (16 * kPacked) == 0, "rows of a cache are whole fragments");
  static_assert(kUnits <= 2, "the lanes of a warp have a token each, or two have one");
  static_assert(kRows % 8 == 0, "rows fill the narrow side of the products");
  static_assert(kRows % kWarps == 0, "every warp has as many rows to put together");

  // Rows as they lie in the cache, 16 bits at a time.
  using PieceTile = typename UnitTile<T, kUnitTokens, kHeadDim / kPacked, Kv::kIsQuantised>::Type;
  using QueryTileStorage = SharedTile<T, (kRows > 16 ? kRows : 16), kHeadDim>;
};

// (scale, zero) of each token of a unit.
template <bool kHasPairs>
struct UnitPairs {
  uint2 pairs[16];  // that of the row of K, that of the row of V
};

template <>
struct UnitPairs<false> {};

// 16 tokens of K and V.
template <class Config>
struct Unit : UnitPairs<DecodeTraits<Config>::Kv::kHasPairs> {
  typename DecodeTraits<Config>::PieceTile key;
  typename DecodeTraits<Config>::PieceTile value;
};

// What one warp reads in one stage.
template <class Config>
struct Piece {
  Unit<Config> units[DecodeTraits<Config>::kUnits];
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

// Where the sequences that follow begin.
struct WindowPlace {
  int first;
  int end;  // units of the column before them
};

// Consecutive stages of one sequence, and their place among the splits of its tile.
struct Segment {
  Tokens tokens;
  int keys;  // of the whole sequence
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

template <class Pairs, bool kHasPairs>
struct PairSource {
  Pairs pairs;
  typename Pairs::Steps pair_steps;
};

template <class Pairs>
struct PairSource<Pairs, false> {};

// Pieces of a sequence whose rows all are seen and, unit by unit, evenly spaced: nearly all pieces.
// Whether one is among them is one comparison, and where it lies takes no division.
struct alignas(16) RegularPieces {
  int begin;            // first tokens of the pieces: from here on
  unsigned count;       // so many
  int block_len;        // a multiple of a unit
  unsigned reciprocal;  // 2^32 / block_len, rounded up

  // Of a cache without blocks.
  __device__ __forceinline__ static RegularPieces make(KeyRange seen, int piece_tokens) {
    const int count = seen.end - seen.begin - piece_tokens + 1;
    return {seen.begin, static_cast<unsigned>(max(count, 0)), 0, 0};
  }

  // reciprocal = (2^32 + e) / block_len with 0 <= e < block_len; then
  //   floor(token reciprocal / 2^32) = floor(token / block_len)   for token e < 2^32
  __device__ __forceinline__ static RegularPieces make(KeyRange seen,
                                                       int piece_tokens,
                                                       const BlockSplitter& splitter) {
    RegularPieces pieces = make(seen, piece_tokens);
    const unsigned block_len = splitter.block_len;
    pieces.block_len = splitter.block_len;
    if (splitter.shift > 0) {
      pieces.reciprocal = 1u << (32 - splitter.shift);
    } else {
      constexpr unsigned kMost = 0xffffffffu;
      pieces.reciprocal = kMost / block_len + 1;
      const unsigned excess = pieces.reciprocal * block_len;
      const int last = static_cast<int>(min(kMost / max(excess, 1u), 0x7fffffffu));  // token
      const int room = last - piece_tokens + 1 - seen.begin;
      pieces.count = min(pieces.count, static_cast<unsigned>(max(room, 0)));
    }
    return pieces;
  }

  __device__ __forceinline__ bool has(int first) const {
    return static_cast<unsigned>(first - begin) < count;
  }

  __device__ __forceinline__ int block(int token) const {
    return static_cast<int>(__umulhi(token, reciprocal));
  }

  __device__ __forceinline__ int row(int token) const { return token - block(token) * block_len; }
};

// What a warp copies from: a sequence, and the keys of it that some row sees.
template <class Config>
struct alignas(16) CopySource
    : PairSource<typename DecodeTraits<Config>::Pairs, DecodeTraits<Config>::Kv::kHasPairs> {
  typename DecodeTraits<Config>::Cache cache;
  typename DecodeTraits<Config>::Cache::Steps steps;
  KeyRange seen;
  RegularPieces regular;
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

template <bool kInRegisters, class Source, int kWarps>
struct SharedSources {
  Source sources[kWarps];
};

template <class Source, int kWarps>
struct SharedSources<true, Source, kWarps> {};

template <class Config>
struct DecodeStorage : QueryRows<DecodeTraits<Config>::kQueryInRegisters,
                                 typename DecodeTraits<Config>::QueryTileStorage>,
                       SharedSources<DecodeTraits<Config>::kHasSpareRegisters,
                                     CopySource<Config>,
                                     DecodeTraits<Config>::kWarps> {
  using Traits = DecodeTraits<Config>;

  // Batches beyond 32 sequences are counted in this many chunks, by different warps.
  static constexpr int kChunks = 32;

  // The copies run up to kStages stages ahead, and know then of one segment more.
  static constexpr int kSegments = Traits::kStages + 2;

  // Places of segments follow each other in a ring.
  __device__ __forceinline__ static int next_segment(int place) {
    return place + 1 == kSegments ? 0 : place + 1;
  }

  Piece<Config> ring[Traits::kWarps][Traits::kStages];
  float2 max_sum[Traits::kWarps][Traits::kRows];  // of a warp's keys: max in log2 units, sum
  int chunk_units[kChunks];
  WarpCount counts[Traits::kWarps];
  RowPlace rows[Traits::kWarps][Traits::kRows];
  Segment segments[Traits::kWarps][kSegments];
  CtaWork work;
  WindowPlace window;
};

}  // namespace attn::sm80
