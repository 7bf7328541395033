// SPDX-License-Identifier: Apache-2.0
// Decode attention for sm_80 and later: one to eight query tokens of each sequence against all the
// keys before them, at the speed of memory.
//
// A CTA computes a range of a column (attn/decode_ranges.cuh). Each of its warps owns 16 tokens of
// every stage, and a ring of its own for them: nothing waits for another warp until a segment ends,
// and the copies of the next segment are under way while one is put together.
#pragma once

#include "attn/sm80/decode_append.cuh"
#include "attn/sm80/decode_copies.cuh"
#include "attn/sm80/decode_merge.cuh"
#include "attn/sm80/decode_output.cuh"
#include "attn/sm80/decode_products.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/decode_walk.cuh"

namespace attn::sm80 {

// The copying end of a range: runs as many stages ahead of the computing end as the ring holds, and
// leaves it the segments that it enters.
template <class Config>
class StageLoader {
  using Traits = DecodeTraits<Config>;
  using Storage = DecodeStorage<Config>;

 public:
  __device__ __forceinline__ StageLoader(Storage& storage,
                                         const DecodeArguments<typename Config::T>& arguments,
                                         const Start& start,
                                         int warp,
                                         int lane)
      : storage_(storage),
        walk_(arguments, start.work.units.begin, start.window, lane),
        pieces_(arguments.params, storage.work, {storage, warp}, lane),
        warp_(warp),
        lane_(lane) {}

  // Starts the copies of the stage that was looked up last, and looks up the next one: the first
  // call has nothing to copy. Each call is one group of copies, also where there are none left.
  __device__ __forceinline__ void advance(int slot, const CtaWork& work) {
    if (stage_ < end_) {
      pieces_.copy(storage_.ring[warp_][slot], first_token());
      ++stage_;
    }
    copy_async_commit();
    if (stage_ == end_ && !walk_.is_at_end(work)) {
      enter_segment(work);
    }
    if (stage_ < end_) {
      pieces_.look_up(first_token());
    }
  }

  // Segments entered so far.
  __device__ __forceinline__ int entered() const { return entered_; }

  // Whether there is nothing left to copy, nor a segment to enter.
  __device__ __forceinline__ bool is_at_end(const CtaWork& work) const {
    return stage_ == end_ && walk_.is_at_end(work);
  }

 private:
  __device__ __forceinline__ int first_token() const {
    return stage_ * Traits::kCtaS + warp_ * Traits::kWarpTokens;
  }

  __device__ __forceinline__ void enter_segment(const CtaWork& work) {
    const Segment segment = walk_.next(work);
    stage_ = segment.stages.begin;
    end_ = segment.stages.end;
    pieces_.enter(segment, work.tile.kv_head);
    if (lane_ == 0) {
      storage_.segments[warp_][entered_ % Storage::kSegments] = segment;
    }
    __syncwarp();  // the segment is visible to the computing end
    ++entered_;
  }

  Storage& storage_;
  Walk<Config> walk_;
  PieceLoader<Config> pieces_;
  int warp_;
  int lane_;
  int stage_ = 0;
  int end_ = 0;
  int entered_ = 0;
};

// Stages after which the centre of codes is taken off the output.
constexpr int kSettledStages = 8;

// Adds one piece to the rows, units that take a step together at a time.
template <class Config>
__device__ __forceinline__ void compute_piece(RowState<Config>& state,
                                              const Piece<Config>& piece,
                                              const DecodeQuery<Config>& query,
                                              const QuerySums<Config>& sums,
                                              const Segment& segment,
                                              const RowPlace* rows,
                                              float scale,
                                              int first_token,
                                              int lane) {
  using Traits = DecodeTraits<Config>;
  if (first_token % (kSettledStages * Traits::kCtaS) < Traits::kCtaS) {
    state.settle();
  }
#pragma unroll
  for (int i = 0; i < Traits::kUnits; i += Traits::kTogether) {
    const Unit<Config>* const units = piece.units + i;
    const int first = first_token + i * Traits::kUnitTokens;
    const int end = first + Traits::kTogether * Traits::kUnitTokens;
    if (first >= segment.seen.end || end <= segment.seen.begin) {
      continue;
    }
    Scores<Config> scores;
    multiply_key_query<Config>(scores, units, query, lane);
#pragma unroll
    for (int unit = 0; unit < Traits::kTogether; ++unit) {
      scale_scores<Config>(scores[unit], units[unit], sums, lane);
    }
    if (first < segment.seen_by_all.begin || end > segment.seen_by_all.end) {
#pragma unroll
      for (int unit = 0; unit < Traits::kTogether; ++unit) {
        mask_scores<Config>(scores[unit], rows, first + unit * Traits::kUnitTokens, lane);
      }
    }
    const auto pairs = ValuePairs<Config>::load(units, lane);
    state.update(scores, scale, pairs);
    state.values.weigh(scores, pairs);
#pragma unroll
    for (int unit = 0; unit < Traits::kTogether; ++unit) {
      multiply_value_probability<Config>(state, scores[unit], units[unit], lane);
    }
  }
}

// The rows of a segment: what is multiplied with its keys.
template <class Config>
struct SegmentRows {
  DecodeQuery<Config> query;
  QuerySums<Config> sums;
  float score_unit;  // what an element of a product stands for
  int stage;         // that comes next

  // Called by all warps.
  __device__ __forceinline__ void begin(DecodeStorage<Config>& storage,
                                        const AttentionParams<typename Config::T>& params,
                                        const Segment& segment,
                                        float key_scale,
                                        int warp,
                                        int lane) {
    const RowPlace* const rows = storage.rows[warp];
    stage = segment.stages.begin;
    place_rows<Config>(storage.rows[warp], params, storage.work.tile, segment, lane);
    const auto scale = query_scale<Config>(params, rows, segment.rows, lane);
    score_unit = key_scale * scale.unit;
    if constexpr (!DecodeTraits<Config>::kQueryInRegisters) {
      store_query(storage, params, rows, segment.rows, scale);
      __syncthreads();  // Q is visible to all warps
    }
    query.load(storage, params, rows, segment.rows, scale, lane);
    sums.add_up(query, lane);
  }
};

// The computing end of a range: takes the stages out of the ring as the loader fills it, and leaves
// each segment as soon as it is complete. Called by all warps.
template <class Config>
__device__ __forceinline__ void walk_along(DecodeStorage<Config>& storage,
                                           const DecodeArguments<typename Config::T>& arguments,
                                           StageLoader<Config>& loader,
                                           int warp,
                                           int lane) {
  using Traits = DecodeTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;
  const CtaWork& work = storage.work;
  const float key_scale = head_scale<Config>(params, params.k_scale, work.tile.kv_head);
  const auto segment_of = [&](int index) -> const Segment& {
    return storage.segments[warp][index % DecodeStorage<Config>::kSegments];
  };
  SegmentRows<Config> rows;
  bool is_new = true;
  RowState<Config> state;
  state.clear();
  int left = 0;  // segments
  int slot = 0;
#pragma unroll 1
  while (true) {
    const Segment& segment = segment_of(left);
    const Destination<Config> destination(arguments, work, segment, warp, lane);
    if (is_new) {
      is_new = false;
      rows.begin(storage, params, segment, key_scale, warp, lane);
    }

    // 1. One stage.
    copy_async_wait<Traits::kStages - 1>();
    __syncwarp();  // the copies of all lanes have landed
    compute_piece(state,
                  storage.ring[warp][slot],
                  rows.query,
                  rows.sums,
                  segment,
                  storage.rows[warp],
                  params.inv_sqrt_dh * kLog2E * rows.score_unit,
                  rows.stage * Traits::kCtaS + warp * Traits::kWarpTokens,
                  lane);
    __syncwarp();  // all lanes are done with the slot
    const bool is_complete = ++rows.stage == segment.stages.end;
    if (is_complete) {
      const float value_scale = head_scale<Config>(params, params.v_scale, work.tile.kv_head);
      merge_warps(
          state,
          storage,
          slot,
          segment.rows,
          value_scale,
          warp,
          lane,
          [&](int row, const MergedRow<Config>& merged) { destination.leave(row, merged); });
    }
    left += is_complete ? 1 : 0;

    // 2. Its slot takes another one.
    const bool is_over = is_complete && left == loader.entered() && loader.is_at_end(work);
    if (!is_over) {
      if (is_complete) {
        __syncthreads();  // all have read the rows: the slot may be filled again
      }
      loader.advance(slot, work);
      slot = slot + 1 == Traits::kStages ? 0 : slot + 1;
    }

    // 3. The segment has left; where it was the last of its tile, put all of them together, while
    // the next rows of Q are on their way.
    if (is_complete) {
      if (Traits::kHasSpareRegisters && !is_over) {
        rows.begin(storage, params, segment_of(left), key_scale, warp, lane);
      }
      destination.reduce();
      if (is_over) {
        return;
      }
      is_new = !Traits::kHasSpareRegisters;
      state.clear();  // here, so that the accumulators need no registers before
    }
  }
}

// Until `wait` returns, no memory is touched.
template <class Config, class Wait>
__device__ __forceinline__ void decode(DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments,
                                       Wait wait) {
  using Traits = DecodeTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // 1. Which column, which range of it.
  const Start start = make_plan(storage, arguments, warp, lane, wait);
  if (start.work.units.begin == start.work.units.end) {
    return;
  }

  // 2. New rows of K and V go into the cache.
  if (params.k != nullptr) {
    Appender<Config>(params, storage.work, warp, lane)
        .append(Walk<Config>(arguments, start.work.units.begin, start.window, lane));
    __syncthreads();  // the copies of all warps see the rows that each has written
  }

  // 3. Fill the ring. What is in registers need not be waited for.
  const CtaWork& work = Traits::kHasSpareRegisters ? start.work : storage.work;
  StageLoader<Config> loader(storage, arguments, start, warp, lane);
#pragma unroll 1
  for (int turn = 0; turn <= Traits::kStages; ++turn) {
    loader.advance(turn - 1, work);
  }

  // 4. Compute.
  walk_along(storage, arguments, loader, warp, lane);
}

template <class Config>
__device__ __forceinline__ void decode(DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments) {
  decode<Config>(storage, arguments, [] {});
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage : sm80::DecodeStorage<Config> {};

}  // namespace attn
