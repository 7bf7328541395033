// SPDX-License-Identifier: Apache-2.0
// The segments of a range, one after the other, and the rows of a segment.
#pragma once

#include "attn/sm80/decode_schedule.cuh"

namespace attn::sm80 {

// Where the rows of a segment lie and which keys they see, one row to a lane. Rows that the tile
// does not have see nothing. Called by a warp.
template <class Config>
__device__ __forceinline__ void place_rows(RowPlace (&rows)[DecodeTraits<Config>::kRows],
                                           const AttentionParams<typename Config::T>& params,
                                           const RowTile& tile,
                                           const Segment& segment,
                                           int lane) {
  const int query = tile.query(lane);
  KeyRange seen = segment.seen;
  if (tile.tokens > 1) {
    const Lengths lengths{segment.tokens, segment.keys};
    seen = seen_by(params, segment.sequence, lengths, query);
  }
  if (lane < DecodeTraits<Config>::kRows) {
    rows[lane] = {
        segment.tokens.begin + query, tile.head(lane), lane < segment.rows ? seen : KeyRange{0, 0}};
  }
  __syncwarp();  // all rows are visible to the warp
}

// Every call is given the work of the CTA: the first one finds it in registers.
template <class Config>
class Walk {
  using T = typename Config::T;

 public:
  __device__ __forceinline__ Walk(const DecodeArguments<T>& arguments, const Start& start, int lane)
      : arguments_(arguments), window_(start.window), unit_(start.work.units.begin), lane_(lane) {}

  __device__ __forceinline__ bool is_at_end(const CtaWork& work) const {
    return unit_ >= work.units.end;
  }

  // The segment that begins where the last one ended.
  __device__ __forceinline__ Segment next(const CtaWork& work) {
    const AttentionParams<T>& params = arguments_.params;
#pragma unroll 1
    while (unit_ >= window_.end) {
      const int first = window_.first + 32;
      const Lengths own = load_lengths(params, first + lane_);
      window_ = make_window<Config>(arguments_, work.tile, own, first, 32, window_.end, lane_);
    }
    const int owner = 31 - __clz(__ballot_sync(kWarp, window_.before <= unit_));
    const Window own = window_.of_lane(owner);
    const TileRange stages = tiles_of(own.seen.by_some, TileOf<Config>::kCtaS);
    Segment segment;
    segment.sequence = window_.first + owner;
    segment.tokens = own.lengths.tokens;
    segment.keys = own.lengths.keys;
    segment.rows = work.tile.tokens_of(own.lengths.tokens.count) * work.tile.heads;
    segment.seen = own.seen.by_some;
    segment.seen_by_all = own.seen.by_all;
    if (arguments_.ranges.pieces) {
      segment.split = unit_ - own.before;
      segment.splits = own.units;
      segment.stages = piece_of(stages, arguments_.plan, segment.split);
      ++unit_;
    } else {
      share_stages(segment, work, stages, own.before, own.units);
    }
    return segment;
  }

 private:
  // What this range has of a tile whose units follow `before` others.
  __device__ __forceinline__ void share_stages(
      Segment& segment, const CtaWork& work, TileRange stages, int before, int units) {
    const UnitRange& own = work.units;
    const int end = before + units;
    const int own_end = min(end, own.end);
    segment.stages = {stages.begin + unit_ - before, stages.begin + own_end - before};
    segment.split = 0;
    segment.splits = 1;
    if (before == own.period && units == work.cut.period) {
      segment.split = own.part;
      segment.splits = work.cut.parts;
    } else if (before < own.begin || end > own.end) {
      // Lane 0 asks for the range of the tile's first unit, the others for that of its last.
      const int range = range_of(work.cut, lane_ == 0 ? before : end - 1);
      const int first = __shfl_sync(kWarp, range, 0);
      segment.split = work.range - first;
      segment.splits = __shfl_sync(kWarp, range, 1) - first + 1;
    }
    unit_ = own_end;
  }

  const DecodeArguments<T>& arguments_;
  Window window_;
  int unit_;
  int lane_;
};

}  // namespace attn::sm80
