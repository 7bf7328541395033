// SPDX-License-Identifier: Apache-2.0
// The two matrix products of a tile of keys, on the fragments of one warp.
#pragma once

#include "attn/sm80/prefill_traits.cuh"

namespace attn::sm80 {

// The fragments of Q that a warp multiplies: held in registers, or read again for every tile.
template <class Config>
class QueryFragments {
  using Traits = PrefillTraits<Config>;
  using Storage = typename Traits::QueryTileStorage;

 public:
  // Q must be visible in shared memory.
  __device__ __forceinline__ void load(const Storage& query, int warp, int lane) {
    if constexpr (Traits::kQueryInRegisters) {
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
        for (int d = 0; d < Traits::kDepthFragments; ++d) {
          load_matrix_x4(held_[f][d], address(query, warp, lane).at(f, d));
        }
      }
    }
  }

  // fragments[f] = rows f * 16 and on, columns d * 16 and on
  __device__ __forceinline__ void get(uint32_t (&fragments)[Traits::kRowFragments][4],
                                      FragmentAddress<Storage> address,
                                      int d) const {
#pragma unroll
    for (int f = 0; f < Traits::kRowFragments; ++f) {
      if constexpr (Traits::kQueryInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          fragments[f][i] = held_[f][d][i];
        }
      } else {
        load_matrix_x4(fragments[f], address.at(f, d));
      }
    }
  }

  // Of the rows of this warp.
  __device__ __forceinline__ static FragmentAddress<Storage> address(const Storage& query,
                                                                     int warp,
                                                                     int lane) {
    auto address = FragmentAddress<Storage>::row_major(query, lane);
    address.origin += warp * Traits::kWarpRows * Storage::kPitchBytes;
    return address;
  }

 private:
  uint32_t held_[Traits::kQueryInRegisters ? Traits::kRowFragments : 1]
                [Traits::kQueryInRegisters ? Traits::kDepthFragments : 1][4];
};

// scores = Q * K^T
template <class Config, class Scores>
__device__ __forceinline__ void multiply_query_key(Scores& scores,
                                                   const QueryFragments<Config>& query,
                                                   const PrefillStorage<Config>& storage,
                                                   int slot,
                                                   int warp,
                                                   int lane) {
  using Traits = PrefillTraits<Config>;
  const auto query_address = QueryFragments<Config>::address(storage.query, warp, lane);
  const auto key_address =
      FragmentAddress<typename Traits::KeyTileStorage>::column_major(storage.key[slot], lane);
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[f][n][i] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int d = 0; d < Traits::kDepthFragments; ++d) {
    uint32_t q[Traits::kRowFragments][4];
    query.get(q, query_address, d);
#pragma unroll
    for (int n = 0; n < Traits::kKeyFragments; ++n) {
      uint32_t k[4];
      load_matrix_x4(k, key_address.at(n, d));
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
        multiply_add(scores[f][2 * n], q[f], k[0], k[1], typename Config::T{});
        multiply_add(scores[f][2 * n + 1], q[f], k[2], k[3], typename Config::T{});
      }
    }
  }
}

// output += P * V for the keys from fragment `first` on; p[k] holds the A operands of 16 keys.
template <class Config, class Output, class Probabilities>
__device__ __forceinline__ void multiply_probability_value(
    Output& output,
    const Probabilities& p,
    const typename PrefillTraits<Config>::ValueTileStorage& value,
    int first,
    int lane) {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  const auto address = FragmentAddress<typename Traits::ValueTileStorage>::row_major(value, lane);
#pragma unroll
  for (int k = 0; k < Traits::kStepFragments; ++k) {
#pragma unroll
    for (int n = 0; n < Traits::kValueFragments; ++n) {
      uint32_t v[4];
      load_matrix_x4_transposed(v, address.at(first + k, n));
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
        multiply_add(output[f][2 * n], p[k][f], v[0], v[1], T{});
        multiply_add(output[f][2 * n + 1], p[k][f], v[2], v[3], T{});
      }
    }
  }
}

}  // namespace attn::sm80
