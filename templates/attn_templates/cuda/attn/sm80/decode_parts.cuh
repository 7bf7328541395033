// SPDX-License-Identifier: Apache-2.0
// How a row leaves a decode CTA: finished, or as a part that others are added to.
#pragma once

#include "attn/sm80/decode_merge.cuh"

namespace attn::sm80 {

// Whether registers hold what a row needs to leave, beside its parts.
template <class Config>
constexpr bool kLeavesInLine = DecodeTraits<Config>::kHasSpareRegisters && Config::kHeadDim <= 128;

// Where a finished row goes. Found by the caller, so that it costs no load there (see
// attn/sm80/decode_window.cuh).
template <class T>
struct RowTarget {
  T* out;
  float* lse;  // null: not wanted
  float sink;  // log2 units; -inf: none

  // Has the compiler find it no later than here.
  __device__ __forceinline__ void settle() { asm volatile("" : "+l"(out), "+l"(lse), "+f"(sink)); }

  __device__ __forceinline__ static RowTarget of(const AttentionParams<T>& params,
                                                 int token,
                                                 int head,
                                                 int head_dim) {
    const int64_t index = static_cast<int64_t>(token) * params.num_heads + head;
    const int64_t of_head = static_cast<int64_t>(head) * params.token_num + token;
    return {params.out + index * head_dim,
            params.lse == nullptr ? nullptr : params.lse + of_head,
            params.sinks == nullptr ? -kInfinity : params.sinks[head] * kLog2E};
  }
};

// Writes a row whose keys have all been added up:
//   out = O / (l + 2^(sink - M))        lse = ln 2 (M + log2(l + 2^(sink - M)))
// A row that has seen no key is zero, its lse -inf.
template <class Config>
__device__ __forceinline__ void store_row_here(MergedRow<Config> row,
                                               const RowTarget<typename Config::T>& target,
                                               int lane) {
  using Row = MergedRow<Config>;
  using T = typename Config::T;
  if (target.sink != -kInfinity && row.sum > 0.0f) {
    const float max = fmaxf(row.max, target.sink);
    row.scale(exp2_approximate(row.max - max));
    row.max = max;
    row.sum += exp2_approximate(target.sink - max);
  }
  const float inverse = row.sum > 0.0f ? 1.0f / row.sum : 0.0f;
#pragma unroll
  for (int step = 0; step < Row::kSteps; ++step) {
    if (Row::has(step, lane)) {
#pragma unroll
      for (int x = 0; x < Row::kVector; ++x) {
        target.out[Row::column(step, x, lane)] = round_to(row.output[step].x[x] * inverse, T{});
      }
    }
  }
  if (target.lse != nullptr && lane == 0) {
    *target.lse = row.sum > 0.0f ? (row.max + __log2f(row.sum)) * kLn2 : -kInfinity;
  }
}

template <class Config>
__device__ __noinline__ void store_row_elsewhere(MergedRow<Config> row,
                                                 RowTarget<typename Config::T> target,
                                                 int lane) {
  store_row_here(row, target, lane);
}

// Where registers are scarce, it is a function of its own. Elsewhere it is not: a cold launch waits
// half a microsecond for code that lies apart.
template <class Config>
__device__ __forceinline__ void store_row(const MergedRow<Config>& row,
                                          const RowTarget<typename Config::T>& target,
                                          int lane) {
  if constexpr (kLeavesInLine<Config>) {
    store_row_here(row, target, lane);
  } else {
    store_row_elsewhere(row, target, lane);
  }
}

// Where parts of rows are kept: O [parts, head_dim], unnormalised, and (max, sum) [parts].
struct PartStore {
  float* output;
  float2* max_sum;
};

// Those of splits: workspace.
template <class T>
__device__ __forceinline__ PartStore split_parts(const AttentionParams<T>& params) {
  return {params.partial_O, reinterpret_cast<float2*>(params.partial_ML)};
}

// That of this rank, which the ranks merge: [token_num, num_heads].
template <class T>
__device__ __forceinline__ PartStore rank_parts(const AttentionParams<T>& params) {
  return {params.cp_O, reinterpret_cast<float2*>(params.cp_ML)};
}

// Parts are written and read past L1: another SM's are among them. They stay in the order that
// MergedRow has.
template <class Config>
__device__ __forceinline__ void store_part(const MergedRow<Config>& row,
                                           PartStore parts,
                                           int64_t part,
                                           int lane) {
  using Row = MergedRow<Config>;
  float* const out = parts.output + part * Config::kHeadDim;
#pragma unroll
  for (int step = 0; step < Row::kSteps; ++step) {
    if (Row::has(step, lane)) {
      const float (&x)[Row::kVector] = row.output[step].x;
      float* const to = out + Row::place(step, lane);
      if constexpr (Row::kVector == 4) {
        __stcg(reinterpret_cast<float4*>(to), {x[0], x[1], x[2], x[3]});
      } else {
        __stcg(reinterpret_cast<float2*>(to), {x[0], x[1]});
      }
    }
  }
  if (lane == 0) {
    __stcg(parts.max_sum + part, {row.max, row.sum});
  }
}

// Parts that another kernel reads, column by column.
template <class Config>
__device__ __noinline__ void store_columns(MergedRow<Config> row,
                                           PartStore parts,
                                           int64_t part,
                                           int lane) {
  using Row = MergedRow<Config>;
  float* const out = parts.output + part * Config::kHeadDim;
#pragma unroll
  for (int step = 0; step < Row::kSteps; ++step) {
    if (Row::has(step, lane)) {
#pragma unroll
      for (int x = 0; x < Row::kVector; ++x) {
        out[Row::column(step, x, lane)] = row.output[step].x[x];
      }
    }
  }
  if (lane == 0) {
    parts.max_sum[part] = {row.max, row.sum};
  }
}

}  // namespace attn::sm80
