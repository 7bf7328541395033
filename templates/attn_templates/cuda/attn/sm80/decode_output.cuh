// SPDX-License-Identifier: Apache-2.0
// What leaves a decode CTA: finished rows, or parts of rows, and who puts the parts together.
#pragma once

#include "attn/sm80/decode_merge.cuh"

namespace attn::sm80 {

// Parts of a row that one warp adds up by itself; where there are more, parts are added up in
// groups, and then the groups.
constexpr int kDirectParts = 32;
constexpr int kGroupParts = 16;

// --- one row ------------------------------------------------------------------------------------

// Writes a row whose keys have all been added up:
//   out = O / (l + 2^(sink - M))        lse = ln 2 (M + log2(l + 2^(sink - M)))
// A row that has seen no key is zero, its lse -inf.
template <class Config>
__device__ __forceinline__ void store_row(MergedRow<Config> row,
                                          const AttentionParams<typename Config::T>& params,
                                          const RowPlace& place,
                                          int lane) {
  using Row = MergedRow<Config>;
  using T = typename Config::T;
  if (params.sinks != nullptr && row.sum > 0.0f) {
    const float sink = params.sinks[place.head] * kLog2E;
    const float max = fmaxf(row.max, sink);
    row.scale(exp2_approximate(row.max - max));
    row.max = max;
    row.sum += exp2_approximate(sink - max);
  }
  const float inverse = row.sum > 0.0f ? 1.0f / row.sum : 0.0f;
  const int64_t index = static_cast<int64_t>(place.token) * params.num_heads + place.head;
  T* const out = params.out + index * Config::kHeadDim;
#pragma unroll
  for (int step = 0; step < Row::kSteps; ++step) {
    if (Row::has(step, lane)) {
      const float (&x)[Row::kVector] = row.output[step].x;
      T* const to = out + Row::column(step, lane);
      const uint32_t low = pack(x[0] * inverse, x[1] * inverse, T{});
      if constexpr (Row::kVector == 4) {
        *reinterpret_cast<uint2*>(to) = {low, pack(x[2] * inverse, x[3] * inverse, T{})};
      } else {
        *reinterpret_cast<uint32_t*>(to) = low;
      }
    }
  }
  if (params.lse != nullptr && lane == 0) {
    params.lse[static_cast<int64_t>(place.head) * params.token_num + place.token] =
        row.sum > 0.0f ? (row.max + __log2f(row.sum)) * kLn2 : -kInfinity;
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

// Parts are written and read past L1: another SM's are among them.
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
      float* const to = out + Row::column(step, lane);
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

// --- the rows of a segment ----------------------------------------------------------------------

// Where the rows of a segment go. Tiles that several ranges of a column share have parts in the
// workspace; each range has two places there, since it shares at most two tiles: the one that goes
// on from the range before, and the one that goes on in the next.
template <class Config>
class Destination {
  using Traits = DecodeTraits<Config>;
  using Row = MergedRow<Config>;
  using Vector = typename Row::Vector;
  // Loads of 16 bytes that a lane has under way; fewer where more CTAs share the registers.
  static constexpr int kLoads = (TileOf<Config>::kCtasPerSm > 2 ? 8 : 16) / Row::kSteps;
  // Rows of a warp that are added up at a time: with many rows, rounds of loads would pass one
  // after the other for each.
  static constexpr int kTogether = Traits::kRows >= 4 * Traits::kWarps ? 4 : 1;
  static constexpr int kPartsOfRow = 32 / kTogether;
  static constexpr int kPartsAtOnce = kLoads / kTogether;

 public:
  __device__ __forceinline__ Destination(const DecodeArguments<typename Config::T>& arguments,
                                         const CtaWork& work,
                                         const Segment& segment,
                                         const RowPlace* rows,
                                         int warp,
                                         int lane)
      : arguments_(arguments),
        work_(work),
        segment_(segment),
        rows_(rows),
        first_(work.range - segment.split),
        warp_(warp),
        lane_(lane) {}

  // Leaves a row of this segment.
  __device__ __forceinline__ void leave(int row, const Row& merged) const {
    const bool has_pieces = arguments_.ranges.pieces != 0;
    if (segment_.splits > 1 && !has_pieces) {
      store_part(merged, split_parts(params()), part(work_.range, row), lane_);
      return;
    }
    // A tile of one split is complete, unless the splits go to a part of this rank first.
    if (segment_.splits > 1 ||
        (params().cp_size > 1 && has_pieces && arguments_.plan.split_cnt > 1)) {
      // [splits, token_num, num_heads]
      const int64_t token =
          static_cast<int64_t>(segment_.split) * params().token_num + rows_[row].token;
      const int64_t index = token * params().num_heads + rows_[row].head;
      store_part(merged, split_parts(params()), index, lane_);
      return;
    }
    finish(row, merged);
  }

  // Adds all splits of this warp's rows up, where it is the last to arrive. Warps do so
  // independently: each has rows and counters of its own.
  __device__ __forceinline__ void reduce() const {
    if (segment_.splits <= 1 || arguments_.ranges.pieces != 0) {
      return;
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
      for (int row = warp_; row < segment_.rows; row += kTogether * Traits::kWarps) {
        add_parts(begin, count, stride, row, is_group);
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

  // What is added up of a row: a group of its parts, or all.
  __device__ __forceinline__ void pass_on(int row, const Row& sum, int begin, bool is_group) const {
    if (is_group) {
      store_part(sum, split_parts(params()), part(begin, row), lane_);
    } else {
      finish(row, sum);
    }
  }

  // A row whose keys on this rank have all been added up.
  __device__ __forceinline__ void finish(int row, const Row& merged) const {
    if (params().cp_size > 1) {
      const int64_t token = rows_[row].token;
      const int64_t index = token * params().num_heads + rows_[row].head;
      store_part(merged, rank_parts(params()), index, lane_);
    } else {
      store_row(merged, params(), rows_[row], lane_);
    }
  }

  // [columns, ranges, (goes on from the range before, begins here), row_slots]; the planner keeps
  // it within 32 bits.
  __device__ __forceinline__ int part(int range, int row) const {
    const int place = 2 * (work_.column * work_.ranges + range) + (range == first_);
    return place * arguments_.ranges.row_slots + row;
  }

  // Counts the arrival of this warp at one of [columns, ranges, warps].
  __device__ __forceinline__ bool is_last(int range, int count) const {
    __syncwarp();  // the parts of all lanes come before the arrival of lane 0
    unsigned before = 0;
    if (lane_ == 0) {
      const int place = (work_.column * work_.ranges + range) * Traits::kWarps + warp_;
      before = count_arrival(params().counters + place, count - 1);
    }
    before = __shfl_sync(kWarp, before, 0);
    __syncwarp();  // what lane 0 has acquired, all may read
    return before == static_cast<unsigned>(count - 1);
  }

  // Adds the parts of the ranges begin, begin + stride, ... up, in this order, for the row `first`
  // and the next kTogether - 1 of this warp:
  //   M = max_j m_j        O = sum_j 2^(m_j - M) O_j        l = sum_j 2^(m_j - M) l_j
  // A row has kPartsOfRow lanes, one for the (m, l) of each of so many parts at a time.
  __device__ __forceinline__ void add_parts(
      int begin, int count, int stride, int first, bool is_group) const {
    const PartStore parts = split_parts(params());
    const int own_row = first + lane_ / kPartsOfRow * Traits::kWarps;
    Row sums[kTogether];
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      sums[r].clear();
    }
    int own = 0;
    float weight = 0.0f;
#pragma unroll 1
    for (int next = 0; next < count; next += kPartsAtOnce) {
      const int chunk = next / kPartsOfRow * kPartsOfRow;
      float2 max_sum{-kInfinity, 0.0f};
      if (next == chunk) {
        // Past the end the last part is read again, with weight 0.
        const int at = min(chunk + lane_ % kPartsOfRow, count - 1);
        own = part(begin + at * stride, own_row < segment_.rows ? own_row : first);
        max_sum = __ldcg(parts.max_sum + own);
      }
      // Without predicates, which would put the loads one behind the other; and before the weights
      // are known, so that both latencies pass together.
      Vector values[kTogether][kPartsAtOnce][Row::kSteps];
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
#pragma unroll
        for (int i = 0; i < kPartsAtOnce; ++i) {
          const int lane = r * kPartsOfRow + next - chunk + i;
          load_part(values[r][i], parts, __shfl_sync(kWarp, own, lane));
        }
      }
      if (next == chunk) {
        const bool exists = chunk + lane_ % kPartsOfRow < count;
        weight = weigh(sums, exists ? max_sum : float2{-kInfinity, 0.0f});
      }
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
#pragma unroll
        for (int i = 0; i < kPartsAtOnce; ++i) {
          const float w = __shfl_sync(kWarp, weight, r * kPartsOfRow + next - chunk + i);
#pragma unroll
          for (int step = 0; step < Row::kSteps; ++step) {
            sums[r].add(step, values[r][i][step], w);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      const int row = first + r * Traits::kWarps;
      if (row < segment_.rows) {
        pass_on(row, sums[r], begin, is_group);
      }
    }
  }

  // Takes kPartsOfRow more parts of each row into its max and sum; returns the weight of this
  // lane's.
  __device__ __forceinline__ static float weigh(Row (&rows)[kTogether], float2 max_sum) {
    float max = max_sum.x;
#pragma unroll
    for (int step = kPartsOfRow / 2; step > 0; step /= 2) {
      max = fmaxf(max, __shfl_xor_sync(kWarp, max, step));
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      const float renewed = fmaxf(rows[r].max, __shfl_sync(kWarp, max, r * kPartsOfRow));
      rows[r].scale(exp2_approximate(rows[r].max - (renewed == -kInfinity ? 0.0f : renewed)));
      rows[r].max = renewed;
      if (static_cast<int>(threadIdx.x) % 32 / kPartsOfRow == r) {
        max = renewed;
      }
    }
    const float weight = exp2_approximate(max_sum.x - (max == -kInfinity ? 0.0f : max));
    float sum = weight * max_sum.y;
#pragma unroll
    for (int step = kPartsOfRow / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kWarp, sum, step);
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      rows[r].sum += __shfl_sync(kWarp, sum, r * kPartsOfRow);
    }
    return weight;
  }

  __device__ __forceinline__ void load_part(Vector (&values)[Row::kSteps],
                                            PartStore parts,
                                            int64_t part) const {
    const float* const from = parts.output + part * Config::kHeadDim;
#pragma unroll
    for (int step = 0; step < Row::kSteps; ++step) {
      // A lane without columns reads those of lane 0.
      const int column = Row::has(step, lane_) ? Row::column(step, lane_) : 0;
      if constexpr (Row::kVector == 4) {
        const float4 value = __ldcg(reinterpret_cast<const float4*>(from + column));
        values[step] = {{value.x, value.y, value.z, value.w}};
      } else {
        const float2 value = __ldcg(reinterpret_cast<const float2*>(from + column));
        values[step] = {{value.x, value.y}};
      }
    }
  }

  const DecodeArguments<typename Config::T>& arguments_;
  const CtaWork& work_;
  const Segment& segment_;
  const RowPlace* rows_;
  int first_;  // range of the tile
  int warp_;
  int lane_;
};

}  // namespace attn::sm80
