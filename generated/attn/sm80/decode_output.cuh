// SPDX-License-Identifier: Apache-2.0
// Where the rows of a segment go, and who puts the parts of a row together.
#pragma once

#include "attn/sm80/decode_column.cuh"
#include "attn/sm80/decode_parts.cuh"
#include "attn/sm80/decode_sums.cuh"

namespace attn::sm80 {

// Parts of a row that one warp adds up by itself; where there are more, parts are added up in
// groups, and then the groups.
constexpr int kDirectParts = 32;
constexpr int kGroupParts = 16;

// A launch whose CTAs share no memory but the workspace.
struct NoCluster {
  static constexpr bool kExists = false;

  __device__ __forceinline__ ColumnPlace place(int columns) const {
    return ColumnPlace::of(blockIdx.x, columns);
  }
};

// Where the rows of a segment go. Tiles that several ranges of a column share have parts in the
// workspace; each range has two places there, since it shares at most two tiles: the one that goes
// on from the range before, and the one that goes on in the next. Where a cluster has all parts of
// a tile, they stay in it.
template <class Config, class Cluster>
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
                                         const Cluster& cluster,
                                         bool stays_in_cluster,
                                         int warp,
                                         int lane)
      : arguments_(arguments),
        work_(work),
        segment_(segment),
        cluster_(cluster),
        first_(work.range - segment.split),
        warp_(warp),
        lane_(lane),
        stays_in_cluster_(stays_in_cluster) {}

  // Whether the parts of a tile stay in the cluster. All ranges that share it find the same here:
  // it is where a period of the cut is the tile, so that they have nothing else.
  __device__ __forceinline__ static bool stays_in_cluster(const CtaWork& work,
                                                          const Segment& segment,
                                                          const Cluster& cluster) {
    const TileRange stages = tiles_of(segment.seen, Traits::kCtaS);
    const int before = work.units.begin - (segment.stages.begin - stages.begin);
    return segment.splits > 1 && stages.end - stages.begin == work.cut.period &&
           before == work.units.period && cluster.holds(work.range - segment.split, segment.splits);
  }

  // Leaves a row of this segment.
  __device__ __forceinline__ void leave(int row, const Row& merged) const {
    if constexpr (Cluster::kExists) {
      if (stays_in_cluster_) {
        cluster_.leave(tile_in_cluster(), row, merged, lane_);
        return;
      }
    }
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

  // Adds all splits of this warp's rows up, where it is the last to arrive, or those of the rows
  // that its CTA has in the cluster. Warps do so independently: each has rows and counters of its
  // own.
  __device__ __forceinline__ void reduce() const {
    if (segment_.splits <= 1 || arguments_.ranges.pieces != 0) {
      return;
    }
    if constexpr (Cluster::kExists) {
      if (stays_in_cluster_) {
        reduce_in_cluster();
        return;
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

  __device__ __forceinline__ auto tile_in_cluster() const {
    return typename Cluster::Tile{first_, segment_.split, segment_.splits, segment_.rows};
  }

  __device__ __forceinline__ void reduce_in_cluster() const {
    const auto tile = tile_in_cluster();
    const int row = tile.row_at(warp_);
    static_assert(Traits::kRows <= 2 * Traits::kWarps, "a CTA has half of the rows: one to a warp");
    if (tile.has_rows() && row < segment_.rows) {
      Target target = target_of(row);
      target.settle();  // here, while parts are under way
      Sums sums;
      sums.add_up_near(cluster_.receive(tile, row, lane_), lane_);
      finish(row, sums.rows[0], target);
    }
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
  const Cluster& cluster_;
  int first_;  // range of the tile
  int warp_;
  int lane_;
  bool stays_in_cluster_;
};

}  // namespace attn::sm80
