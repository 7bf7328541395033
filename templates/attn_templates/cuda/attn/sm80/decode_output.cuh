// SPDX-License-Identifier: Apache-2.0
// What leaves a decode CTA: finished rows, or parts of rows, and who puts the parts together.
#pragma once

#include "attn/sm80/decode_merge.cuh"

namespace attn::sm80 {

// Parts of a row that one warp adds up by itself; where there are more, parts are added up in
// groups, and then the groups.
constexpr int kDirectParts = 32;
constexpr int kGroupParts = 16;

// A row of the tile in the output: [token_num, num_heads].
struct RowPlace {
  int64_t token;
  int head;
};

__device__ __forceinline__ RowPlace place_of(const RowTile& tile, const Segment& segment, int row) {
  return {segment.tokens.begin + tile.query(row), tile.head(row)};
}

// Writes a row whose keys have all been added up:
//   out = O / (l + 2^(sink - M))        lse = ln 2 (M + log2(l + 2^(sink - M)))
// A row that has seen no key is zero, its lse -inf.
template <class Config>
__device__ __forceinline__ void store_row(const typename OwnedRows<Config>::Row& row,
                                          const AttentionParams<typename Config::T>& params,
                                          RowPlace place,
                                          int lane) {
  using Own = OwnedRows<Config>;
  using T = typename Config::T;
  float max = row.max;
  float sum = row.sum;
  float scale = 1.0f;
  if (params.sinks != nullptr && sum > 0.0f) {
    const float sink = params.sinks[place.head] * kLog2E;
    max = fmaxf(max, sink);
    scale = exp2_approximate(row.max - max);
    sum = sum * scale + exp2_approximate(sink - max);
  }
  const float inverse = sum > 0.0f ? scale / sum : 0.0f;
  T* const out = params.out + (place.token * params.num_heads + place.head) * Config::kHeadDim;
#pragma unroll
  for (int step = 0; step < Own::kSteps; ++step) {
    if (Own::has(step, lane)) {
      uint32_t packed[Own::kVector / 2];
#pragma unroll
      for (int x = 0; x < Own::kVector; x += 2) {
        packed[x / 2] =
            pack(row.output[step].x[x] * inverse, row.output[step].x[x + 1] * inverse, T{});
      }
      T* const to = out + Own::column(step, lane);
      if constexpr (Own::kVector == 4) {
        *reinterpret_cast<uint2*>(to) = {packed[0], packed[1]};
      } else {
        *reinterpret_cast<uint32_t*>(to) = packed[0];
      }
    }
  }
  if (params.lse != nullptr && lane == 0) {
    params.lse[static_cast<int64_t>(place.head) * params.token_num + place.token] =
        sum > 0.0f ? (max + __log2f(sum)) * kLn2 : -kInfinity;
  }
}

// Where parts of rows are kept: O [parts, head_dim], unnormalised, and (max, sum) [parts].
struct PartStore {
  float* output;
  float2* max_sum;

  template <class T>
  __device__ __forceinline__ static PartStore of_splits(const AttentionParams<T>& params) {
    return {params.partial_O, reinterpret_cast<float2*>(params.partial_ML)};
  }

  // [token_num, num_heads] of this rank.
  template <class T>
  __device__ __forceinline__ static PartStore of_rank(const AttentionParams<T>& params) {
    return {params.cp_O, reinterpret_cast<float2*>(params.cp_ML)};
  }
};

// Parts are written and read past L1: another SM's are among them.
template <class Config>
__device__ __forceinline__ void store_part(const typename OwnedRows<Config>::Row& row,
                                           PartStore parts,
                                           int64_t part,
                                           int lane) {
  using Own = OwnedRows<Config>;
  float* const out = parts.output + part * Config::kHeadDim;
#pragma unroll
  for (int step = 0; step < Own::kSteps; ++step) {
    if (Own::has(step, lane)) {
      const typename Own::Vector& value = row.output[step];
      float* const to = out + Own::column(step, lane);
      if constexpr (Own::kVector == 4) {
        __stcg(reinterpret_cast<float4*>(to), {value.x[0], value.x[1], value.x[2], value.x[3]});
      } else {
        __stcg(reinterpret_cast<float2*>(to), {value.x[0], value.x[1]});
      }
    }
  }
  if (lane == 0) {
    __stcg(parts.max_sum + part, {row.max, row.sum});
  }
}

// Writes a row whose keys on this rank have all been added up.
template <class Config>
__device__ __forceinline__ void store_result(const typename OwnedRows<Config>::Row& row,
                                             const AttentionParams<typename Config::T>& params,
                                             RowPlace place,
                                             int lane) {
  if (params.cp_size > 1) {
    const int64_t part = place.token * params.num_heads + place.head;
    store_part<Config>(row, PartStore::of_rank(params), part, lane);
  } else {
    store_row<Config>(row, params, place, lane);
  }
}

// The parts of a tile that several ranges of a column share. Each range has two places, since it
// shares at most two tiles: the one that goes on from the range before, and the one that goes on in
// the next.
template <class Config>
class SharedTiles {
  using Traits = DecodeTraits<Config>;
  using Own = OwnedRows<Config>;
  using Row = typename Own::Row;
  using Vector = typename Own::Vector;
  // Loads of 16 bytes that a lane has under way.
  static constexpr int kLoads = 16 / Own::kSteps;

 public:
  __device__ __forceinline__ SharedTiles(const DecodeArguments<typename Config::T>& arguments,
                                         const CtaWork& work,
                                         const Segment& segment,
                                         int warp,
                                         int lane)
      : arguments_(arguments),
        work_(work),
        segment_(segment),
        first_(work.range - segment.split),
        warp_(warp),
        lane_(lane) {}

  // Leaves this warp's rows of a split, and adds all splits up where it is the last to arrive.
  // Warps do so independently: each has rows and counters of its own.
  __device__ __forceinline__ void leave(const OwnedRows<Config>& owned) {
#pragma unroll
    for (int own = 0; own < Traits::kOwnedRows; ++own) {
      const int row = Own::row(own, warp_);
      if (row < segment_.rows) {
        store_part<Config>(owned.rows[own], parts(), part(work_.range, row), lane_);
      }
    }
    // Parts of `count` ranges from `begin` on, `stride` apart, whose arrivals `counter` counts.
    int begin = first_;
    int count = segment_.splits;
    int stride = 1;
    int counter = begin;
    bool is_group = count > kDirectParts;
    if (is_group) {
      const int skipped = segment_.split / kGroupParts * kGroupParts;
      begin = counter = first_ + skipped;
      count = min(kGroupParts, count - skipped);
    }
#pragma unroll 1
    while (is_last(counter, count)) {
#pragma unroll 1
      for (int row = warp_; row < segment_.rows; row += Traits::kWarps) {
        const Row sum = add_parts(begin, count, stride, row);
        if (is_group) {
          store_part<Config>(sum, parts(), part(begin, row), lane_);
        } else {
          store_result<Config>(sum, params(), place_of(work_.tile, segment_, row), lane_);
        }
      }
      if (!is_group) {
        return;
      }
      // The groups. The second range of a tile leads none, so its counter is free for them.
      is_group = false;
      begin = first_;
      counter = first_ + 1;
      count = (segment_.splits + kGroupParts - 1) / kGroupParts;
      stride = kGroupParts;
    }
  }

 private:
  __device__ __forceinline__ const AttentionParams<typename Config::T>& params() const {
    return arguments_.params;
  }

  __device__ __forceinline__ PartStore parts() const { return PartStore::of_splits(params()); }

  // [columns, ranges, (goes on from the range before, begins here), row_slots]
  __device__ __forceinline__ int64_t part(int range, int row) const {
    const int64_t place =
        2 * (static_cast<int64_t>(work_.column) * work_.ranges + range) + (range == first_);
    return place * arguments_.ranges.row_slots + row;
  }

  // Counts the arrival of this warp at one of [columns, ranges, warps].
  __device__ __forceinline__ bool is_last(int range, int count) const {
    __syncwarp();  // the parts of all lanes come before the arrival of lane 0
    unsigned before = 0;
    if (lane_ == 0) {
      const int64_t place = static_cast<int64_t>(work_.column) * work_.ranges + range;
      before = count_arrival(params().counters + place * Traits::kWarps + warp_, count - 1);
    }
    before = __shfl_sync(kWarp, before, 0);
    __syncwarp();  // what lane 0 has acquired, all may read
    return before == static_cast<unsigned>(count - 1);
  }

  // sum_j 2^(m_j - M) O_j over the parts of the ranges begin, begin + stride, ..., in this order.
  __device__ __forceinline__ Row add_parts(int begin, int count, int stride, int row) const {
    Row result{};
    result.max = -kInfinity;
    for (int done = 0; done < count; done += 32) {  // (m, l) of 32 parts at a time, one to a lane
      const int here = min(32, count - done);
      const int64_t own = part(begin + (done + min(lane_, here - 1)) * stride, row);
      float2 max_sum = __ldcg(parts().max_sum + own);
      Vector values[kLoads][Own::kSteps];
      load_parts(values, own, 0, here);  // needs no weights: both latencies pass together
      if (lane_ >= here) {
        max_sum = {-kInfinity, 0.0f};
      }
      float max = max_sum.x;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        max = fmaxf(max, __shfl_xor_sync(kWarp, max, step));
      }
      max = fmaxf(max, result.max);
      const float reference = max == -kInfinity ? 0.0f : max;
      const float former = exp2_approximate(result.max - reference);
      const float weight = exp2_approximate(max_sum.x - reference);
      float sum = weight * max_sum.y;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        sum += __shfl_xor_sync(kWarp, sum, step);
      }
      result.max = max;
      result.sum = result.sum * former + sum;
#pragma unroll
      for (int step = 0; step < Own::kSteps; ++step) {
#pragma unroll
        for (int x = 0; x < Own::kVector; ++x) {
          result.output[step].x[x] *= former;
        }
      }
      add_loaded(result, values, weight, 0);
#pragma unroll 1
      for (int next = kLoads; next < here; next += kLoads) {
        load_parts(values, own, next, here);
        add_loaded(result, values, weight, next);
      }
    }
    return result;
  }

  // Without predicates, which would put the loads one behind the other: past the end the last part
  // is read again, and has weight 0.
  __device__ __forceinline__ void load_parts(Vector (&values)[kLoads][Own::kSteps],
                                             int64_t own,
                                             int next,
                                             int count) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t place = __shfl_sync(kWarp, own, min(next + i, count - 1));
      const float* const from = parts().output + place * Config::kHeadDim;
#pragma unroll
      for (int step = 0; step < Own::kSteps; ++step) {
        // A lane without columns reads those of lane 0.
        const int column = Own::has(step, lane_) ? Own::column(step, lane_) : 0;
        if constexpr (Own::kVector == 4) {
          const float4 value = __ldcg(reinterpret_cast<const float4*>(from + column));
          values[i][step] = {{value.x, value.y, value.z, value.w}};
        } else {
          const float2 value = __ldcg(reinterpret_cast<const float2*>(from + column));
          values[i][step] = {{value.x, value.y}};
        }
      }
    }
  }

  __device__ __forceinline__ void add_loaded(Row& result,
                                             const Vector (&values)[kLoads][Own::kSteps],
                                             float weight,
                                             int next) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const float w = next + i < 32 ? __shfl_sync(kWarp, weight, next + i) : 0.0f;
#pragma unroll
      for (int step = 0; step < Own::kSteps; ++step) {
#pragma unroll
        for (int x = 0; x < Own::kVector; ++x) {
          result.output[step].x[x] += w * values[i][step].x[x];
        }
      }
    }
  }

  const DecodeArguments<typename Config::T>& arguments_;
  const CtaWork& work_;
  const Segment& segment_;
  int first_;  // range of the tile
  int warp_;
  int lane_;
};

// Writes the rows of a segment to where they belong.
template <class Config>
__device__ __forceinline__ void leave_rows(const OwnedRows<Config>& owned,
                                           const DecodeArguments<typename Config::T>& arguments,
                                           const CtaWork& work,
                                           const Segment& segment,
                                           int warp,
                                           int lane) {
  const AttentionParams<typename Config::T>& params = arguments.params;
  if (segment.splits > 1 && !arguments.ranges.pieces) {
    SharedTiles<Config>(arguments, work, segment, warp, lane).leave(owned);
    return;
  }
  // A tile of one split is complete, unless the splits go to a part of this rank first.
  const bool leaves_split = segment.splits > 1 || (params.cp_size > 1 && arguments.ranges.pieces &&
                                                   arguments.plan.split_cnt > 1);
#pragma unroll
  for (int own = 0; own < DecodeTraits<Config>::kOwnedRows; ++own) {
    const int row = OwnedRows<Config>::row(own, warp);
    if (row < segment.rows) {
      const RowPlace place = place_of(work.tile, segment, row);
      if (leaves_split) {
        // [splits, token_num, num_heads]
        const int64_t token = static_cast<int64_t>(segment.split) * params.token_num + place.token;
        const int64_t part = token * params.num_heads + place.head;
        store_part<Config>(owned.rows[own], PartStore::of_splits(params), part, lane);
      } else {
        store_result<Config>(owned.rows[own], params, place, lane);
      }
    }
  }
}

}  // namespace attn::sm80
