// SPDX-License-Identifier: Apache-2.0
// Tiles of a quantised cache: the codes as they were copied, and how they become tiles of T.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/pair_iterator.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm80/ordered_codes.cuh"
#include "attn/sm80/shared_tile.cuh"

namespace attn::sm80 {

// (scale, zero) of the rows of a tile.
template <class Pairs, int kCtaS, bool kHasPairs>
struct TilePairs {
  Pairs pair_rows;
  alignas(128) uint32_t key_pairs[kCtaS];
  alignas(128) uint32_t value_pairs[kCtaS];
};

template <class Pairs, int kCtaS>
struct TilePairs<Pairs, kCtaS, false> {};

// One tile of K and of V in codes. The copy of the next tile begins once this one has been expanded
// and passes behind the arithmetic, so one is enough.
template <class Traits, bool kIsQuantised = Traits::Kv::kIsQuantised>
struct CodeTiles : TilePairs<typename Traits::Pairs, Traits::kCtaS, Traits::Kv::kHasPairs> {
  typename Traits::KeyCopyTarget key_codes;
  typename Traits::ValueCopyTarget value_codes;
};

template <class Traits>
struct CodeTiles<Traits, false> {};

// --- eight elements -----------------------------------------------------------------------------

// The words of a row of codes that make 16 bytes of T.
template <int kWords>
__device__ __forceinline__ void load_words(uint32_t (&words)[kWords], uint32_t shared) {
  if constexpr (kWords == 2) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(shared));
  } else {
    asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(words[0]) : "r"(shared));
  }
}

__device__ __forceinline__ void store_16(uint32_t shared, uint4 words) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared),
               "r"(words.x),
               "r"(words.y),
               "r"(words.z),
               "r"(words.w)
               : "memory");
}

// --- tiles --------------------------------------------------------------------------------------

// Which pieces of a tile a thread expands: eight codes each, 16 bytes of T. Those of a step lie in
// neighbouring rows, and from step to step a piece moves on by a multiple of eight rows, so that it
// keeps its swizzle.
template <class Traits>
struct ExpandShare {
  static constexpr int kChunks = Traits::kHeadDim / 8;
  // Threads of a row: such that few or none of them are without a piece, and no fewer than cover
  // the rows of a tile once.
  static constexpr int kFewestLanes =
      Traits::kThreads / Traits::kCtaS > 4 ? Traits::kThreads / Traits::kCtaS : 4;
  static constexpr int kLanes = kChunks % 16 == 0                      ? 16
                                : kChunks % 8 == 0 || kFewestLanes > 4 ? 8
                                                                       : 4;
  static constexpr int kRows = Traits::kThreads / kLanes;  // of a step
  static constexpr int kSteps = Traits::kCtaS / kRows;
  static constexpr int kColumns = (kChunks + kLanes - 1) / kLanes;  // pieces of a row, at most
  static_assert(kLanes >= kFewestLanes && Traits::kCtaS % kRows == 0, "every step has whole rows");
  static_assert(kRows % 8 == 0, "a piece keeps its swizzle from step to step");

  int row;
  int chunk;

  // Of the calling thread. Addresses are recomputed for each tile, not kept.
  __device__ __forceinline__ static ExpandShare own() {
    const int thread = static_cast<int>(recomputed(threadIdx.x));
    return {thread / kLanes, thread % kLanes};
  }

  __device__ __forceinline__ int chunk_of(int column) const { return column * kLanes + chunk; }

  __device__ __forceinline__ bool has(int column) const {
    return kChunks % kLanes == 0 || chunk_of(column) < kChunks;
  }
};

// A thread's pieces of a tile of codes, in registers: all are read before the first is expanded.
template <class Traits>
class CodePieces {
  using T = typename Traits::T;
  using Tkv = typename Traits::Tkv;
  using Share = ExpandShare<Traits>;

 public:
  // `pairs`: of the rows.
  template <class CodeTile>
  __device__ __forceinline__ void load(const CodeTile& codes,
                                       const uint32_t* pairs,
                                       const Share& share) {
#pragma unroll
    for (int column = 0; column < Share::kColumns; ++column) {
      const int chunk = share.chunk_of(column);
      const uint32_t from = shared_address(&codes) +
                            CodeTile::chunk_offset(share.row, chunk / kPerChunk) +
                            chunk % kPerChunk * kWords * 4;
#pragma unroll
      for (int step = 0; step < Share::kSteps; ++step) {
        if (share.has(column)) {
          load_words(words_[column][step], from + step * Share::kRows * CodeTile::kPitchBytes);
        }
      }
    }
    if constexpr (Traits::Kv::kHasPairs) {
#pragma unroll
      for (int step = 0; step < Share::kSteps; ++step) {
        pairs_[step] = pairs[share.row + step * Share::kRows];
      }
    }
  }

  template <class Tile>
  __device__ __forceinline__ void store(Tile& tile, const Share& share) const {
#pragma unroll
    for (int column = 0; column < Share::kColumns; ++column) {
      const uint32_t to =
          shared_address(&tile) + Tile::chunk_offset(share.row, share.chunk_of(column));
#pragma unroll
      for (int step = 0; step < Share::kSteps; ++step) {
        if (share.has(column)) {
          const auto scale = PairScale<T, Tkv>::of(Traits::Kv::kHasPairs ? pairs_[step] : 0);
          store_16(to + step * Share::kRows * Tile::kPitchBytes,
                   expand_eight<T, Tkv>(words_[column][step], scale));
        }
      }
    }
  }

 private:
  static constexpr int kWords = Traits::Kv::kBits / 4;  // of 8 codes
  static constexpr int kPerChunk = 4 / kWords;          // such groups in 16 bytes of codes

  uint32_t words_[Share::kColumns][Share::kSteps][kWords];
  uint32_t pairs_[Share::kSteps];
};

// `pairs`: of the rows.
template <class Traits, class CodeTile, class Tile>
__device__ __forceinline__ void expand_tile(Tile& tile,
                                            const CodeTile& codes,
                                            const uint32_t* pairs) {
  const auto share = ExpandShare<Traits>::own();
  CodePieces<Traits> pieces;
  pieces.load(codes, pairs, share);
  pieces.store(tile, share);
}

// The tiles of K and V that the products read.
template <class Traits, class Storage>
__device__ __forceinline__ void expand_tiles(Storage& storage) {
  if constexpr (Traits::Kv::kHasPairs) {
    expand_tile<Traits>(storage.key[0], storage.key_codes, storage.key_pairs);
    expand_tile<Traits>(storage.value[0], storage.value_codes, storage.value_pairs);
  } else {
    expand_tile<Traits>(storage.key[0], storage.key_codes, nullptr);
    expand_tile<Traits>(storage.value[0], storage.value_codes, nullptr);
  }
}

// The output in units of 1, where the elements of V have a factor for all tokens, or are stored in
// other units.
template <class Config, class Output>
__device__ __forceinline__ void scale_output(Output& output,
                                             const AttentionParams<typename Config::T>& params,
                                             const QueryTile& tile) {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  if constexpr (KvTraits<T, Tkv>::kType == KvType::kE4m3 || kStoredUnit<T, Tkv> != 1.0f) {
    const float factor =
        value_factor<Config>(params, tile.head / (params.num_heads / params.num_kv_heads)) *
        kStoredUnit<T, Tkv>;
    for (auto& fragment : output) {
#pragma unroll
      for (auto& columns : fragment) {
#pragma unroll
        for (float& x : columns) {
          x *= factor;
        }
      }
    }
  }
}

}  // namespace attn::sm80
