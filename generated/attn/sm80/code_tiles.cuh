// SPDX-License-Identifier: Apache-2.0
// Tiles of a quantised cache: the codes as they were copied, and how they become tiles of T.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/pair_iterator.cuh"
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

// Expands the codes of a tile; each thread makes 16 bytes of T at a time. `pairs`: of the rows.
template <class Traits, class CodeTile, class Tile>
__device__ __forceinline__ void expand_tile(Tile& tile,
                                            const CodeTile& codes,
                                            const uint32_t* pairs) {
  using T = typename Traits::T;
  using Tkv = typename Traits::Tkv;
  constexpr int kChunks = Traits::kHeadDim / 8;
  constexpr int kWords = Traits::Kv::kBits / 4;  // of 8 codes
  constexpr int kPerChunk = 4 / kWords;          // such groups in 16 bytes of codes
  constexpr int kPieces = Traits::kCtaS * kChunks;
  const uint32_t from = shared_address(&codes);
  const uint32_t to = shared_address(&tile);
  const int thread = opaque(threadIdx.x);
#pragma unroll 4
  for (int first = 0; first < kPieces; first += Traits::kThreads) {
    const int piece = first + thread;
    if (kPieces % Traits::kThreads != 0 && piece >= kPieces) {
      break;
    }
    const int row = piece / kChunks;
    const int chunk = piece % kChunks;
    uint32_t words[kWords];
    load_words(
        words,
        from + CodeTile::chunk_offset(row, chunk / kPerChunk) + chunk % kPerChunk * kWords * 4);
    const auto scale = PairScale<T, Tkv>::of(Traits::Kv::kHasPairs ? pairs[row] : 0);
    store_16(to + Tile::chunk_offset(row, chunk), expand_eight<T, Tkv>(words, scale));
  }
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

// The output in units of 1, where the elements of V have a factor for all tokens.
template <class Config, class Output>
__device__ __forceinline__ void scale_output(Output& output,
                                             const AttentionParams<typename Config::T>& params,
                                             const QueryTile& tile) {
  if constexpr (KvTraits<typename Config::T, typename Config::Tkv>::kType == KvType::kE4m3) {
    const float factor =
        value_factor<Config>(params, tile.head / (params.num_heads / params.num_kv_heads));
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
