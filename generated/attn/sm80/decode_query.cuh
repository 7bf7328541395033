// SPDX-License-Identifier: Apache-2.0
// The rows of Q of a decode CTA: which column lies where, the tile in shared memory, and the narrow
// operand of S^T = K Q^T that a lane makes of it.
#pragma once

#include "attn/sm80/decode_codes.cuh"
#include "attn/sm80/decode_schedule.cuh"

namespace attn::sm80 {

// Where a row lies in q.
template <class T>
__device__ __forceinline__ const T* query_row(const AttentionParams<T>& params,
                                              const RowPlace& row,
                                              int head_dim) {
  return params.q + row.token * params.stride + static_cast<int64_t>(row.head) * head_dim;
}

// The columns of step k that a lane with lane % 4 = t multiplies: elements u = 0 and 1 of half 0
// and of half 1. Where codes are packed, the order of columns is that in which Halves expands words
// (attn/sm80/decode_halves.cuh): lane t has 2 kPacked neighbouring columns of kPacked / 2 steps.
template <class Config>
__device__ __forceinline__ int query_column(int k, int half, int t, int u) {
  constexpr int kPacked = DecodeTraits<Config>::kPacked;
  if constexpr (kPacked == 1) {
    return k * 16 + half * 8 + 2 * t + u;
  } else {
    constexpr int kSteps = kPacked / 2;
    return k / kSteps * 8 * kPacked + t * 2 * kPacked + k % kSteps * 2 + half + u * kPacked;
  }
}

// The column of element c of fragment i of the output: a word of V has columns that lie side by
// side, each of which is a row of another fragment.
template <class Config>
__device__ __forceinline__ int output_column(int i, int c, int lane) {
  constexpr int kPacked = DecodeTraits<Config>::kPacked;
  return (i / kPacked * 16 + c / 2 * 8 + lane / 4) * kPacked + i % kPacked;
}

// Elements 0 and 1 of a half of step k, side by side.
template <class Config>
__device__ __forceinline__ uint32_t
query_pair(const typename Config::T* row, int k, int half, int t) {
  const auto* const first = row + query_column<Config>(k, half, t, 0);
  if constexpr (DecodeTraits<Config>::kPacked == 1) {
    return *reinterpret_cast<const uint32_t*>(first);
  } else {
    const auto* const bits = reinterpret_cast<const unsigned short*>(first);
    return bits[0] | static_cast<uint32_t>(bits[DecodeTraits<Config>::kPacked]) << 16;
  }
}

// The scale of the rows of a segment. Called by a warp.
template <class Config>
__device__ __forceinline__ QueryScale<Config> query_scale(
    const AttentionParams<typename Config::T>& params,
    const RowPlace* rows,
    int row_count,
    int lane) {
  if constexpr (!DecodeTraits<Config>::Kv::kIsQuantised) {
    return {};
  } else {
    constexpr int kChunks = Config::kHeadDim / 8;
    float largest = 0.0f;
#pragma unroll 4
    for (int i = lane; i < row_count * kChunks; i += 32) {
      const auto* const row = query_row(params, rows[i / kChunks], Config::kHeadDim);
      const uint4 chunk = reinterpret_cast<const uint4*>(row)[i % kChunks];
      const auto* const x = reinterpret_cast<const typename Config::T*>(&chunk);
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        largest = fmaxf(largest, fabsf(static_cast<float>(x[u])));
      }
    }
    // Floats that are not negative are ordered like their bits.
    return QueryScale<Config>::of(
        __uint_as_float(__reduce_max_sync(kWarp, __float_as_uint(largest))));
  }
}

// Elements 0 and 1 of a half of step k as they are multiplied.
template <class Config>
__device__ __forceinline__ uint32_t query_product(
    const typename Config::T* row, int k, int half, int t, const QueryScale<Config>& scale) {
  const uint32_t pair = query_pair<Config>(row, k, half, t);
  if constexpr (DecodeTraits<Config>::Kv::kIsQuantised) {
    return scale.scaled(pair, half, typename Config::T{});
  } else {
    return pair;
  }
}

// Eight columns of a row in the order in which they are multiplied.
template <class Config>
__device__ __forceinline__ uint4 query_chunk(const typename Config::T* row,
                                             int chunk,
                                             const QueryScale<Config>& scale) {
  if constexpr (DecodeTraits<Config>::kPacked == 1) {
    return *reinterpret_cast<const uint4*>(row + chunk * 8);
  } else {
    const auto two = [&](int t) {
      return query_product<Config>(row, chunk / 2, chunk % 2, t, scale);
    };
    return {two(0), two(1), two(2), two(3)};
  }
}

// Fills the tile of Q; rows that do not exist become zero. Called by all warps.
template <class Config>
__device__ __forceinline__ void store_query(DecodeStorage<Config>& storage,
                                            const AttentionParams<typename Config::T>& params,
                                            const RowPlace* rows,
                                            int row_count,
                                            const QueryScale<Config>& scale) {
  using Traits = DecodeTraits<Config>;
  using Tile = typename Traits::QueryTileStorage;
  constexpr int kChunks = Traits::kHeadDim / 8;
  char* const base = reinterpret_cast<char*>(storage.query.data);
#pragma unroll 2
  for (int i = threadIdx.x; i < Traits::kRows * kChunks; i += Traits::kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    uint4 values{0, 0, 0, 0};
    if (row < row_count) {
      const auto* const from = query_row(params, rows[row], Traits::kHeadDim);
      values = query_chunk<Config>(from, chunk, scale);
    }
    *reinterpret_cast<uint4*>(base + Tile::chunk_offset(row, chunk)) = values;
  }
}

// The narrow operand of S^T: for each step of 16 columns and each row tile, (k 2t, 2t + 1) and
// (k 2t + 8, 2t + 9) of row g.
template <class Config, bool kInRegisters = DecodeTraits<Config>::kQueryInRegisters>
class DecodeQuery;

template <class Config>
class DecodeQuery<Config, true> {
  using Traits = DecodeTraits<Config>;

 public:
  __device__ __forceinline__ void load(const DecodeStorage<Config>&,
                                       const AttentionParams<typename Config::T>& params,
                                       const RowPlace* rows,
                                       int row_count,
                                       const QueryScale<Config>& scale,
                                       int lane) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      const int row = n * 8 + lane / 4;
      const auto* const from = query_row(params, rows[row], Traits::kHeadDim);
      const bool exists = row < row_count;
#pragma unroll
      for (int k = 0; k < Traits::kDepthFragments; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          fragments_[k][n][half] =
              exists ? query_product<Config>(from, k, half, lane % 4, scale) : 0u;
        }
      }
    }
  }

  __device__ __forceinline__ void fragment(uint32_t (&b)[Traits::kRowTiles][2], int k) const {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      b[n][0] = fragments_[k][n][0];
      b[n][1] = fragments_[k][n][1];
    }
  }

 private:
  uint32_t fragments_[Traits::kDepthFragments][Traits::kRowTiles][2];
};

template <class Config>
class DecodeQuery<Config, false> {
  using Traits = DecodeTraits<Config>;
  using Tile = typename Traits::QueryTileStorage;

 public:
  __device__ __forceinline__ void load(const DecodeStorage<Config>& storage,
                                       const AttentionParams<typename Config::T>&,
                                       const RowPlace*,
                                       int,
                                       const QueryScale<Config>&,
                                       int lane) {
    address_ = FragmentAddress<Tile>::column_major(storage.query, lane);
  }

  __device__ __forceinline__ void fragment(uint32_t (&b)[Traits::kRowTiles][2], int k) const {
    static_assert(Traits::kRowTiles % 2 == 0, "ldmatrix reads two row tiles");
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; n += 2) {
      uint32_t pair[4];
      load_matrix_x4(pair, address_.at(n / 2, k));
      b[n][0] = pair[0];
      b[n][1] = pair[1];
      b[n + 1][0] = pair[2];
      b[n + 1][1] = pair[3];
    }
  }

 private:
  FragmentAddress<Tile> address_;
};

}  // namespace attn::sm80
