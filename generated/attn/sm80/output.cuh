// SPDX-License-Identifier: Apache-2.0
// What leaves the CTA: finished rows, or the part of one split.
#pragma once

#include "attn/sm80/prefill_traits.cuh"

namespace attn::sm80 {

// Writes output / sum as 16-byte stores, through the warp's own rows of Q in shared memory, which
// nobody reads any more, and the rows' lse.
template <class Config, class Output, class Softmax>
__device__ __forceinline__ void store_output(
    typename PrefillTraits<Config>::QueryTileStorage& staging,
    Output& output,
    const Softmax& softmax,
    const AttentionParams<typename Config::T>& params,
    const QueryTile& tile,
    int warp,
    int lane) {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  using Staging = typename Traits::QueryTileStorage;
  char* const base = reinterpret_cast<char*>(staging.data);
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      const float sum = softmax.sum[f][h];
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that sees nothing is zero
#pragma unroll
      for (int n = 0; n < 2 * Traits::kValueFragments; ++n) {
        *reinterpret_cast<uint32_t*>(base + Staging::chunk_offset(row, n) + lane % 4 * 4) =
            pack(output[f][n][2 * h] * inverse, output[f][n][2 * h + 1] * inverse, T{});
      }
      if (params.lse != nullptr && lane % 4 == 0 && row < tile.rows) {
        params.lse[static_cast<int64_t>(tile.head) * params.token_num + tile.first_token + row] =
            softmax.log_sum_exp(f, h);
      }
    }
  }
  __syncwarp();  // the warp's rows are complete

  constexpr int kChunks = Traits::kHeadDimV / 8;
#pragma unroll
  for (int first = 0; first < Traits::kWarpRows * kChunks; first += 32) {
    const int row = warp * Traits::kWarpRows + (first + lane) / kChunks;
    const int chunk = (first + lane) % kChunks;
    if (row < tile.rows) {
      // out [token_num, num_heads, head_dim_v]
      const int64_t out_row =
          static_cast<int64_t>(tile.first_token + row) * params.num_heads + tile.head;
      *reinterpret_cast<uint4*>(params.out + out_row * Traits::kHeadDimV + chunk * 8) =
          *reinterpret_cast<const uint4*>(base + Staging::chunk_offset(row, chunk));
    }
  }
}

// Writes what one split of the keys leaves: the unnormalised output, and (reference in log2 units,
// sum).
template <class Config, class Output, class Softmax>
__device__ __forceinline__ void store_partial(const Output& output,
                                              const Softmax& softmax,
                                              const AttentionParams<typename Config::T>& params,
                                              const QueryTile& tile,
                                              int warp,
                                              int lane) {
  using Traits = PrefillTraits<Config>;
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      if (row < tile.rows) {
        // [splits, token_num, num_heads]
        const int64_t token =
            static_cast<int64_t>(tile.split) * params.token_num + tile.first_token + row;
        const int64_t partial = token * params.num_heads + tile.head;
        float* const out = params.partial_O + partial * Traits::kHeadDimV + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2 * Traits::kValueFragments; ++n) {
          *reinterpret_cast<float2*>(out + n * 8) = {output[f][n][2 * h], output[f][n][2 * h + 1]};
        }
        if (lane % 4 == 0) {
          *reinterpret_cast<float2*>(params.partial_ML + partial * 2) = {
              softmax.known_reference(f, h), softmax.sum[f][h]};
        }
      }
    }
  }
}

}  // namespace attn::sm80
