// SPDX-License-Identifier: Apache-2.0
// Where the rows of a segment go, and who puts the parts of a row together.
#pragma once

#include "attn/sm80/decode_parts.cuh"

namespace attn::sm80 {

// Parts of a row that one warp adds up by itself; where there are more, parts are added up in
// groups, and then the groups.
constexpr int kDirectParts = 32;
constexpr int kGroupParts = 16;

// Where the rows of a segment go. Tiles that several ranges of a column share have parts in the
// workspace; each range has two places there, since it shares at most two tiles: the one that goes
// on from the range before, and the one that goes on in the next.
template <class Config>
class Destination {
  using Traits = DecodeTraits<Config>;
  using Row = MergedRow<Config>;
  using Vector = typename Row::Vector;
  // Loads of 16 bytes that a lane has under way; fewer where more CTAs share the registers. A power
  // of two of parts, so that the rounds fill up the lanes that hold their weights.
  static constexpr int kSteps = Row::kSteps == 3 ? 4 : Row::kSteps;
  static constexpr int kLoads = (TileOf<Config>::kCtasPerSm > 2 ? 8 : 16) / kSteps;
  // Rows of a warp that are added up at a time: with many rows, rounds of loads would pass one
  // after the other for each.
  static constexpr int kTogether = Traits::kRows >= 4 * Traits::kWarps ? 4 : 1;
  static constexpr int kPartsOfRow = 32 / kTogether;
  static constexpr int kPartsAtOnce = kLoads / kTogether;
  static constexpr int kFewParts =
      Traits::kHasSpareRegisters && kPartsAtOnce > 4 ? 4 : kPartsAtOnce;  // these need fewer loads
  static_assert(kPartsOfRow % kPartsAtOnce == 0 && kPartsOfRow % kFewParts == 0,
                "a round of parts has its weights in one set of lanes");

 public:
  __device__ __forceinline__ Destination(const DecodeArguments<typename Config::T>& arguments,
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
      const int64_t before = static_cast<int64_t>(segment_.split) * params().token_num;
      const int64_t index = (before + token_of(row)) * params().num_heads + work_.tile.head(row);
      store_columns(merged, split_parts(params()), index, lane_);
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
        if (kPartsAtOnce > kFewParts && count <= kFewParts) {
          add_parts<kFewParts>(begin, count, stride, row, is_group);
        } else {
          add_parts<kPartsAtOnce>(begin, count, stride, row, is_group);
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

  // Where a row lies in q and out.
  __device__ __forceinline__ int token_of(int row) const {
    return segment_.tokens.begin + work_.tile.query(row);
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
      const int64_t index =
          static_cast<int64_t>(token_of(row)) * params().num_heads + work_.tile.head(row);
      store_columns(merged, rank_parts(params()), index, lane_);
    } else {
      const auto target = RowTarget<typename Config::T>::of(
          params(), token_of(row), work_.tile.head(row), Config::kHeadDim);
      store_row<Config>(merged, target, lane_);
    }
  }

  // [columns, ranges, (goes on from the range before, begins here), row_slots]; the planner keeps
  // it within 32 bits.
  __device__ __forceinline__ int part(int range, int row) const {
    const int place = 2 * (work_.column * work_.ranges + range) + (range == first_);
    return place * arguments_.ranges.row_slots + row;
  }

  // Parts of one row: those of ranges `stride` apart. They lie evenly but for the first of a tile.
  struct PartRow {
    int first;
    int origin;  // where the first one would lie among the others; where it is alone, `first`
    int step;

    __device__ __forceinline__ int operator[](int i) const {
      return i == 0 ? first : origin + i * step;
    }
  };

  __device__ __forceinline__ PartRow parts_of(int begin, int count, int stride, int row) const {
    const int slots = arguments_.ranges.row_slots;
    const int first = part(begin, row);
    return {first, first - (begin == first_ && count > 1 ? slots : 0), 2 * stride * slots};
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
  template <int kAtOnce>
  __device__ __forceinline__ void add_parts(
      int begin, int count, int stride, int first, bool is_group) const {
    const PartStore parts = split_parts(params());
    PartRow places[kTogether];
    Row sums[kTogether];
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      const int row = first + r * Traits::kWarps;
      places[r] = parts_of(begin, count, stride, row < segment_.rows ? row : first);
      sums[r].clear();
    }
    const int own_row = lane_ / kPartsOfRow;
    float weight = 0.0f;
#pragma unroll 1
    for (int next = 0; next < count; next += kAtOnce) {
      const int chunk = next / kPartsOfRow * kPartsOfRow;
      float2 max_sum{-kInfinity, 0.0f};
      if (next == chunk) {
        // Past the end the last part is read again, with weight 0.
        const int at = min(chunk + lane_ % kPartsOfRow, count - 1);
        int own = places[0][at];
#pragma unroll
        for (int r = 1; r < kTogether; ++r) {
          own = own_row == r ? places[r][at] : own;
        }
        max_sum = __ldcg(parts.max_sum + own);
      }
      // Without predicates, which would put the loads one behind the other; and before the weights
      // are known, so that both latencies pass together.
      Vector values[kTogether][kAtOnce][Row::kSteps];
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
        const PartRow& row = places[r];
        load_part(values[r][0], parts, next == 0 ? row.first : row.origin + next * row.step, 0);
#pragma unroll
        for (int i = 1; i < kAtOnce; ++i) {
          load_part(values[r][i], parts, row.origin, min(next + i, count - 1) * row.step);
        }
      }
      if (next == chunk) {
        const bool exists = chunk + lane_ % kPartsOfRow < count;
        weight = weigh(sums, exists ? max_sum : float2{-kInfinity, 0.0f});
      }
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
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
                                            int part,
                                            int behind) const {
    const float* const from = parts.output + static_cast<int64_t>(part) * Config::kHeadDim +
                              static_cast<int64_t>(behind) * Config::kHeadDim;
#pragma unroll
    for (int step = 0; step < Row::kSteps; ++step) {
      // A lane without vectors reads that of lane 0.
      const int place = Row::has(step, lane_) ? Row::place(step, lane_) : 0;
      if constexpr (Row::kVector == 4) {
        const float4 value = __ldcg(reinterpret_cast<const float4*>(from + place));
        values[step] = {{value.x, value.y, value.z, value.w}};
      } else {
        const float2 value = __ldcg(reinterpret_cast<const float2*>(from + place));
        values[step] = {{value.x, value.y}};
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

}  // namespace attn::sm80
