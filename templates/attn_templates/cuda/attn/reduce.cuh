// SPDX-License-Identifier: Apache-2.0
// Merges what is known of each row in pieces: the splits of its keys, or the parts of the ranks of
// a context-parallel group.
#pragma once

#include "attn/arithmetic.cuh"
#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/merged_row.cuh"
#include "attn/split.cuh"

namespace attn {

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
                                               int sequence,
                                               int token) {
  const int q_begin = params.cu_q_len[sequence];
  const int q_len = params.cu_q_len[sequence + 1] - q_begin;
  const VisibleKeys visible = visible_keys(params, sequence, q_len, params.causal);
  const int first_query = (token - q_begin) / plan.cta_q * plan.cta_q;
  const int last_query = min(first_query + plan.cta_q, q_len) - 1;
  const TileRange tiles = tiles_of(visible.any(first_query, last_query), plan.cta_s);
  return split_count(tiles.begin, tiles.end, plan);
}

// Adds the sink of a row's head to what it has seen, if anything: L += 2^(sink - M).
template <class T, int kPairs>
__device__ __forceinline__ void add_sink(const AttentionParams<T>& params,
                                         MergedRow<kPairs>& merged,
                                         int head) {
  if (params.sinks == nullptr || !(merged.sum > 0.0f)) {
    return;
  }
  const float sink = params.sinks[head] * kLog2E;
  const float reference = fmaxf(merged.reference, sink);
  const float factor = exp2f(merged.reference - reference);
  merged.reference = reference;
  merged.sum = merged.sum * factor + exp2f(sink - reference);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    merged.output[i].x *= factor;
    merged.output[i].y *= factor;
  }
}

// out = O / L and lse = ln 2 * (M + log2 L); zeros and -inf for a row that has seen nothing.
template <class Config, int kPairs>
__device__ __forceinline__ void store_row(const AttentionParams<typename Config::T>& params,
                                          MergedRow<kPairs> merged,
                                          int64_t row,
                                          int token,
                                          int lane) {
  using T = typename Config::T;
  const int head = static_cast<int>(row - static_cast<int64_t>(token) * params.num_heads);
  add_sink(params, merged, head);
  const float inverse = merged.sum > 0.0f ? 1.0f / merged.sum : 0.0f;
  // A call of some of the heads writes between those of the others.
  const int64_t stride = params.cp_out_stride > 0
                             ? params.cp_out_stride
                             : static_cast<int64_t>(params.num_heads) * Config::kHeadDimV;
  T* const out = params.out + token * stride + head * Config::kHeadDimV;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int column = lane * 2 + i * 64;
    if (column < Config::kHeadDimV) {
      out[column] = static_cast<T>(merged.output[i].x * inverse);
      out[column + 1] = static_cast<T>(merged.output[i].y * inverse);
    }
  }
  if (params.lse != nullptr && lane == 0) {
    params.lse[static_cast<int64_t>(head) * params.token_num + token] =
        merged.sum > 0.0f ? (merged.reference + log2f(merged.sum)) * kLn2 : -kInfinity;
  }
}

// Leaves O and (M, L) in this rank's part.
template <class Config, int kPairs>
__device__ __forceinline__ void store_part(const AttentionParams<typename Config::T>& params,
                                           const MergedRow<kPairs>& merged,
                                           int64_t row,
                                           int lane) {
  float* const output = params.cp_O + row * Config::kHeadDimV;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int column = lane * 2 + i * 64;
    if (column < Config::kHeadDimV) {
      *reinterpret_cast<float2*>(output + column) = merged.output[i];
    }
  }
  if (lane == 0) {
    *reinterpret_cast<float2*>(params.cp_ML + row * 2) = {
        merged.sum > 0.0f ? merged.reference : -kInfinity, merged.sum};
  }
}

// One warp merges one row of [token_num, num_heads]. Rows that were not split are complete already,
// unless they go to a part.
template <class Config>
__device__ __forceinline__ void reduce(const Arguments<typename Config::T>& arguments) {
  constexpr int kHeadDimV = Config::kHeadDimV;
  constexpr int kPairs = (kHeadDimV + 63) / 64;
  const AttentionParams<typename Config::T>& params = arguments.params;
  const int lane = threadIdx.x % 32;
  // Below 2^32: no memory holds the parts of more rows.
  const unsigned row = blockIdx.x * kReduceWarps + threadIdx.x / 32;
  const int64_t rows = static_cast<int64_t>(params.token_num) * params.num_heads;
  const int token = static_cast<int>(row / static_cast<unsigned>(params.num_heads));
  if (row >= rows || token >= params.cu_q_len[params.batch_size]) {
    return;
  }
  const int sequence = sequence_of_token(params.cu_q_len, params.batch_size, token);
  if (params.finished != nullptr && params.finished[sequence]) {
    return;
  }
  if (arguments.plan.merge == Merge::kRanks) {
    const Pieces parts = parts_of_row<kHeadDimV>(params, row);
    const auto merged = merge<kHeadDimV, kPairs, Weightless::kSkipped>(parts, lane);
    store_row<Config>(params, merged, row, token, lane);
    return;
  }
  const int splits = splits_of_token(params, arguments.plan, sequence, token);
  if (arguments.plan.merge == Merge::kSplitsToPart) {
    // A row that sees no key has one piece all the same, left by split 0.
    const Pieces pieces = splits_of_row<kHeadDimV>(params, rows, row, max(splits, 1));
    const auto merged = merge<kHeadDimV, kPairs, Weightless::kSkipped>(pieces, lane);
    store_part<Config>(params, merged, row, lane);
  } else if (splits > 1) {
    const Pieces pieces = splits_of_row<kHeadDimV>(params, rows, row, splits);
    const auto merged = merge<kHeadDimV, kPairs, Weightless::kAdded>(pieces, lane);
    store_row<Config>(params, merged, row, token, lane);
  }
}

}  // namespace attn
