// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a decode warp on its 16 tokens of a stage. Keys and values are the wide side of
// the products, rows of Q the narrow one:
//
//   S^T [tokens x rows] = K Q^T        O^T [columns x rows] += V^T P^T
//
// A lane with g = lane / 4, t = lane % 4 holds of S^T the tokens g and g + 8, and of both the rows
// 8n + 2t and 8n + 2t + 1 of each row tile n.
#pragma once

#include "attn/sm80/decode_codes.cuh"
#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_query.cuh"
#include "attn/sm80/decode_rows.cuh"

namespace attn::sm80 {

// --- fragments ----------------------------------------------------------------------------------

// Where a lane points for the first fragment of a tile, in bytes: found once, 16 bits for K and 16
// for V.
template <class Config>
struct FragmentPlaces {
  using Tile = typename DecodeTraits<Config>::PieceTile;
  using Address = FragmentAddress<Tile>;
  static_assert(sizeof(Tile) <= 0x10000, "16 bits hold any place of a tile");

  // In a register, where there is one: codes of 8 bits use all of them.
  static constexpr bool kKept = DecodeTraits<Config>::Kv::kBits != 8;

  uint32_t both;

  __device__ __forceinline__ static FragmentPlaces of_lane(int lane) {
    const uint32_t both = Address::row_major_place(lane) | Address::column_major_place(lane) << 16;
    return {kKept ? kept(both) : both};
  }

  __device__ __forceinline__ Address of_key(const Unit<Config>& unit) const {
    return Address::of(unit.key, both & 0xffff);
  }

  __device__ __forceinline__ Address of_value(const Unit<Config>& unit) const {
    return Address::of(unit.value, both >> 16);
  }
};

// As many fragments of K or V are read ahead as registers allow. One of codes is several.
template <class Config>
inline constexpr int kFragmentsAhead = DecodeTraits<Config>::kAccumulators > 64   ? 1
                                       : DecodeTraits<Config>::kAccumulators > 32 ? 4
                                       : DecodeTraits<Config>::Kv::kIsQuantised   ? 4
                                                                                  : 8;

// The wide operands that `kMade` fragments of 16-bit rows make: of tokens and steps of Q, or of
// columns and tokens of V. Codes make several.
template <class Config>
inline constexpr int kMade = DecodeTraits<Config>::kPacked;

template <class Config>
__device__ __forceinline__ void expand_keys(uint32_t (&made)[kMade<Config>][4],
                                            const uint32_t (&loaded)[4]) {
  if constexpr (kMade<Config> == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      made[0][i] = loaded[i];
    }
  } else {
    // Words 0 and 1 are of the tokens g and g + 8, words 2 and 3 of their next 16 bytes.
    constexpr int kSteps = kMade<Config> / 2;  // that a word has columns for
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t pairs[kMade<Config>];
      Halves<typename Config::Tkv>::expand(pairs, loaded[word]);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        made[word / 2 * kSteps + step][word % 2] = pairs[2 * step];
        made[word / 2 * kSteps + step][word % 2 + 2] = pairs[2 * step + 1];
      }
    }
  }
}

template <class Config>
__device__ __forceinline__ void expand_values(uint32_t (&made)[kMade<Config>][4],
                                              const uint32_t (&loaded)[4]) {
  if constexpr (kMade<Config> == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      made[0][i] = loaded[i];
    }
  } else {
    // A word has kPacked columns of the tokens 2t and 2t + 1.
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t pairs[kMade<Config>];
      Halves<typename Config::Tkv>::expand_columns(pairs, loaded[word]);
#pragma unroll
      for (int column = 0; column < kMade<Config>; ++column) {
        made[column][word] = pairs[column];
      }
    }
  }
}

// --- scores -------------------------------------------------------------------------------------

// Of the units that take a step together: their products are independent of each other.
template <class Config>
__device__ __forceinline__ void multiply_key_query(Scores<Config>& scores,
                                                   const Unit<Config>* units,
                                                   const DecodeQuery<Config>& query,
                                                   const FragmentPlaces<Config>& places) {
  using Traits = DecodeTraits<Config>;
  constexpr int kTogether = Traits::kTogether;
  constexpr int kAhead = (kFragmentsAhead<Config> + kTogether - 1) / kTogether;
  constexpr int kMakes = kMade<Config>;
  // Where nothing else passes meanwhile, two chains halve the latency of dependent products.
  constexpr int kChains = Traits::kRowTiles * kTogether == 1 ? 2 : 1;
  float chains[kChains][kTogether][Traits::kRowTiles][4] = {};
#pragma unroll
  for (int first = 0; first < Traits::kLoadedFragments; first += kAhead) {
    uint32_t loaded[kAhead][kTogether][4];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int unit = 0; unit < kTogether; ++unit) {
        if (first + i < Traits::kLoadedFragments) {
          load_matrix_x4(loaded[i][unit], places.of_key(units[unit]).at(0, first + i));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        uint32_t a[kTogether][kMakes][4];
#pragma unroll
        for (int unit = 0; unit < kTogether; ++unit) {
          expand_keys<Config>(a[unit], loaded[i][unit]);
        }
#pragma unroll
        for (int made = 0; made < kMakes; ++made) {
          const int k = (first + i) * kMakes + made;
          uint32_t b[Traits::kRowTiles][2];
          query.fragment(b, k);
#pragma unroll
          for (int unit = 0; unit < kTogether; ++unit) {
#pragma unroll
            for (int n = 0; n < Traits::kRowTiles; ++n) {
              multiply_add(chains[k % kChains][unit][n],
                           a[unit][made],
                           b[n][0],
                           b[n][1],
                           typename Traits::Product{});
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int unit = 0; unit < kTogether; ++unit) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[unit][n][c] = kChains == 2 ? chains[0][unit][n][c] + chains[kChains - 1][unit][n][c]
                                          : chains[0][unit][n][c];
      }
    }
  }
}

// -inf where a row does not see a token.
template <class Config>
__device__ __forceinline__ void mask_scores(float (&scores)[DecodeTraits<Config>::kRowTiles][4],
                                            const RowPlace* rows,
                                            int first_token,
                                            int lane) {
#pragma unroll
  for (int n = 0; n < DecodeTraits<Config>::kRowTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const KeyRange seen = rows[n * 8 + lane % 4 * 2 + c % 2].seen;
      const int token = first_token + lane / 4 + c / 2 * 8;
      if (token < seen.begin || token >= seen.end) {
        scores[n][c] = -kInfinity;
      }
    }
  }
}

// --- output -------------------------------------------------------------------------------------

// Reads V while the softmax is under way, where registers allow.
template <class Config>
__device__ __forceinline__ void multiply_value_probability(
    RowState<Config>& state,
    const float (&probabilities)[DecodeTraits<Config>::kRowTiles][4],
    const Unit<Config>& unit,
    const FragmentPlaces<Config>& places) {
  using Traits = DecodeTraits<Config>;
  using Product = typename Traits::Product;
  constexpr int kAhead = kFragmentsAhead<Config>;
  constexpr int kMakes = kMade<Config>;
  uint32_t b[Traits::kRowTiles][2];
#pragma unroll
  for (int n = 0; n < Traits::kRowTiles; ++n) {
    const float (&p)[4] = probabilities[n];
    b[n][0] = transpose_matrix(pack(p[0], p[1], Product{}));
    b[n][1] = transpose_matrix(pack(p[2], p[3], Product{}));
    state.values.add_weights(n, b[n][0], b[n][1]);
  }
  const auto address = places.of_value(unit);
#pragma unroll
  for (int first = 0; first < Traits::kLoadedFragments; first += kAhead) {
    uint32_t loaded[kAhead][4];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        load_matrix_x4_transposed(loaded[i], address.at(0, first + i));
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        uint32_t a[kMakes][4];
        expand_values<Config>(a, loaded[i]);
#pragma unroll
        for (int made = 0; made < kMakes; ++made) {
#pragma unroll
          for (int n = 0; n < Traits::kRowTiles; ++n) {
            multiply_add(
                state.output[(first + i) * kMakes + made][n], a[made], b[n][0], b[n][1], Product{});
          }
        }
      }
    }
  }
}

}  // namespace attn::sm80
