// SPDX-License-Identifier: Apache-2.0
// Where the rows of a segment go, and who puts the parts of a row together.
#pragma once

#include "attn/sm80/decode_parts.cuh"
#include "attn/sm80/decode_sums.cuh"

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
  using Sums = PartSums<Config>;
  using Target = RowTarget<typename Config::T>;
  static constexpr bool kFindsTargetEarly = kLeavesInLine<Config> && Sums::kTogether == 1;

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
    finish(row, merged, target_of(row));
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
    while (true) {
      const unsigned before = arrive(counter, count);
      Target target{};  // of the first row
      if constexpr (kFindsTargetEarly) {
        target = target_of(min(warp_, segment_.rows - 1));
        target.settle();  // here, while the arrival is counted
      }
      if (!was_last(before, count)) {
        return;
      }
      const bool has_few = Sums::kAtOnce > Sums::kFew && count <= Sums::kFew;
      const PartRange parts{begin, count, stride};
#pragma unroll 1
      for (int row = warp_; row < segment_.rows; row += Sums::kTogether * Traits::kWarps) {
        if (has_few) {
          add_parts<Sums::kFew>(parts, row, target, is_group);
        } else {
          add_parts<Sums::kAtOnce>(parts, row, target, is_group);
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
  __device__ __forceinline__ void pass_on(
      int row, const Row& sum, const Target& target, int begin, bool is_group) const {
    if (is_group) {
      store_part(sum, split_parts(params()), part(begin, row), lane_);
    } else {
      finish(row, sum, target);
    }
  }

  __device__ __forceinline__ Target target_of(int row) const {
    return Target::of(params(), token_of(row), work_.tile.head(row), Config::kHeadDim);
  }

  // A row whose keys on this rank have all been added up.
  __device__ __forceinline__ void finish(int row, const Row& merged, const Target& target) const {
    if (params().cp_size > 1) {
      const int64_t index =
          static_cast<int64_t>(token_of(row)) * params().num_heads + work_.tile.head(row);
      store_columns(merged, rank_parts(params()), index, lane_);
    } else {
      store_row<Config>(merged, target, lane_);
    }
  }

  // [columns, row_slots, ranges, (goes on from the range before, begins here)]; the planner keeps
  // it within 32 bits.
  __device__ __forceinline__ int part(int range, int row) const {
    const int line = work_.column * arguments_.ranges.row_slots + row;
    return 2 * (line * work_.ranges + range) + (range == first_);
  }

  // Parts of the ranges begin, begin + stride, ...
  struct PartRange {
    int begin;
    int count;
    int stride;
  };

  __device__ __forceinline__ PartRow parts_of(const PartRange& parts, int row) const {
    const int first = part(parts.begin, row);
    const bool is_apart = parts.begin == first_ && parts.count > 1;
    return {first, first - (is_apart ? 1 : 0), 2 * parts.stride};
  }

  // Counts the arrival of this warp at one of [columns, ranges, warps]. Lane 0 knows how many came
  // before.
  __device__ __forceinline__ unsigned arrive(int range, int count) const {
    __syncwarp();  // the parts of all lanes come before the arrival of lane 0
    unsigned before = 0;
    if (lane_ == 0) {
      const int place = (work_.column * work_.ranges + range) * Traits::kWarps + warp_;
      before = count_arrival(params().counters + place, count - 1);
    }
    return before;
  }

  __device__ __forceinline__ static bool was_last(unsigned before, int count) {
    before = __shfl_sync(kWarp, before, 0);
    __syncwarp();  // what lane 0 has acquired, all may read
    return before == static_cast<unsigned>(count - 1);
  }

  // Adds parts up for the row `first` and the next ones of this warp.
  template <int kAtOnce>
  __device__ __forceinline__ void add_parts(const PartRange& range,
                                            int first,
                                            Target target,
                                            bool is_group) const {
    const auto place = [&](int r) {
      const int row = first + r * Traits::kWarps;
      return parts_of(range, row < segment_.rows ? row : first);
    };
    Sums sums;
    sums.template add_up<kAtOnce>(split_parts(params()), place, range.count, lane_);
#pragma unroll
    for (int r = 0; r < Sums::kTogether; ++r) {
      const int row = first + r * Traits::kWarps;
      if (row < segment_.rows) {
        if (!kFindsTargetEarly || row != warp_) {
          target = target_of(row);
        }
        pass_on(row, sums.rows[r], target, range.begin, is_group);
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
