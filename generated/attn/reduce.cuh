// SPDX-License-Identifier: Apache-2.0
// Merges the splits of each row: what follows the attention kernel when keys were split.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/split.cuh"

namespace attn {

constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);
constexpr int kReduceWarps = 4;  // rows per CTA; a warp merges one row

// The sequence that holds a token: the last b with cu_q_len[b] <= token.
__device__ __forceinline__ int sequence_of_token(const int* cu_q_len, int batch_size, int token) {
  int start;
  return find_sequence(
      cu_q_len, batch_size, 1, token, start);  // tiles of one query: a slot is a token
}

// How many splits of a row hold keys. The same tile, the same keys and the same cut as in the
// attention kernel.
template <class T>
__device__ __forceinline__ int splits_of_token(const AttentionParams<T>& params,
                                               const TilePlan& plan,
                                               int token) {
  const int sequence = sequence_of_token(params.cu_q_len, params.batch_size, token);
  if (params.finished != nullptr && params.finished[sequence]) {
    return 0;
  }
  const int q_begin = params.cu_q_len[sequence];
  const int q_len = params.cu_q_len[sequence + 1] - q_begin;
  const int k_len = params.cu_k_len[sequence + 1] - params.cu_k_len[sequence];
  const VisibleKeys visible{q_len, k_len, params.window_size, params.causal};
  const int first_query = (token - q_begin) / plan.cta_q * plan.cta_q;
  const int last_query = min(first_query + plan.cta_q, q_len) - 1;
  const TileRange tiles = tiles_of(visible.any(first_query, last_query), plan.cta_s);
  return split_count(tiles.begin, tiles.end, plan);
}

// One warp merges one row of [token_num, num_heads]:
//   M   = max_s m_s                          m_s in log2 units
//   w_s = 2^(m_s - M)
//   out = sum_s w_s O_s / sum_s w_s l_s      lse = ln 2 * (M + log2 sum_s w_s l_s)
// A row whose splits have all seen nothing gets zeros and -inf. Rows that were not split are
// complete already.
template <class Config>
__device__ __forceinline__ void reduce(const Arguments<typename Config::T>& arguments) {
  using T = typename Config::T;
  const AttentionParams<T>& params = arguments.params;
  const int lane = threadIdx.x % 32;
  const unsigned row =
      blockIdx.x * kReduceWarps + threadIdx.x / 32;  // the planner keeps rows below 2^32
  const int64_t rows = static_cast<int64_t>(params.token_num) * params.num_heads;
  const int token = static_cast<int>(row / static_cast<unsigned>(params.num_heads));
  if (row >= rows || token >= params.cu_q_len[params.batch_size]) {
    return;
  }
  const int splits = splits_of_token(params, arguments.plan, token);
  if (splits <= 1) {
    return;
  }
  const float2* const ml = reinterpret_cast<const float2*>(params.partial_ML);  // [splits, rows]

  // 1. The common reference.
  float max = -kInfinity;
  for (int split = lane; split < splits; split += 32) {
    max = fmaxf(max, ml[split * rows + row].x);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, step));
  }
  const float reference = max == -kInfinity ? 0.0f : max;

  // 2. The weighted sums; a lane owns the columns lane * 2 + i * 64 and the next.
  constexpr int kPairs = (Config::kHeadDimV + 63) / 64;
  float2 sums[kPairs] = {};
  float weighted_l = 0.0f;
  for (int first = 0; first < splits; first += 32) {
    float weight = 0.0f;
    if (first + lane < splits) {
      const float2 mine = ml[(first + lane) * rows + row];
      weight = exp2f(mine.x - reference);
      weighted_l += weight * mine.y;
    }
    const int count = min(32, splits - first);
    for (int s = 0; s < count; ++s) {
      const float w = __shfl_sync(0xffffffffu, weight, s);
      // [splits, rows, head_dim_v]
      const float* const partial =
          params.partial_O + ((first + s) * rows + row) * Config::kHeadDimV;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int column = lane * 2 + i * 64;
        if (column < Config::kHeadDimV) {
          const float2 o = *reinterpret_cast<const float2*>(partial + column);
          sums[i].x += w * o.x;
          sums[i].y += w * o.y;
        }
      }
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    weighted_l += __shfl_xor_sync(0xffffffffu, weighted_l, step);
  }

  // 3. The row and its lse.
  const float inverse = weighted_l > 0.0f ? 1.0f / weighted_l : 0.0f;
  T* const out = params.out + static_cast<int64_t>(row) * Config::kHeadDimV;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int column = lane * 2 + i * 64;
    if (column < Config::kHeadDimV) {
      out[column] = static_cast<T>(sums[i].x * inverse);
      out[column + 1] = static_cast<T>(sums[i].y * inverse);
    }
  }
  if (params.lse != nullptr && lane == 0) {
    const int64_t head = row % static_cast<unsigned>(params.num_heads);
    params.lse[head * params.token_num + token] =
        weighted_l > 0.0f ? (reference + log2f(weighted_l)) * 0.6931471805599453f : -kInfinity;
  }
}

}  // namespace attn
