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
                                         const Window& window,
                                         int warp,
                                         int lane)
      : storage_(storage),
        walk_(arguments, storage.work, window, lane),
        pieces_(arguments.params, storage.work, storage.sources[warp], lane),
        warp_(warp),
        lane_(lane) {}

  // Starts the copies of the stage that was looked up last, and looks up the next one; the first
  // call has nothing to copy yet. Each call is one group of copies.
  __device__ __forceinline__ void advance(int slot) {
    if (stage_ < end_) {
      pieces_.copy(storage_.ring[warp_][slot], first_token());
      ++stage_;
    }
    copy_async_commit();
    if (stage_ == end_ && !walk_.is_at_end()) {
      enter_segment();
    }
    if (stage_ < end_) {
      pieces_.look_up(first_token());
    }
  }

  // Segments entered so far.
  __device__ __forceinline__ int entered() const { return entered_; }

 private:
  __device__ __forceinline__ int first_token() const {
    return stage_ * Traits::kCtaS + warp_ * Traits::kWarpTokens;
  }

  __device__ __forceinline__ void enter_segment() {
    const Segment segment = walk_.next();
    stage_ = segment.stages.begin;
    end_ = segment.stages.end;
    pieces_.enter(segment);
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

template <class Config>
__device__ __forceinline__ void decode(DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments) {
  using Traits = DecodeTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // 1. Which column, which range of it.
  const Window window = Scheduler<Config>(storage, arguments, warp, lane).make();
  const CtaWork& work = storage.work;
  if (work.range >= work.cut.ranges) {
    return;
  }

  // 2. New rows of K and V go into the cache.
  if (params.k != nullptr) {
    Appender<Config>(params, work.tile.kv_head, warp, lane)
        .append(Walk<Config>(arguments, work, window, lane));
    __syncthreads();  // the copies of all warps see the rows that each has written
  }

  // 3. Walk along the range. The first turns only copy: the same code as later, since fetching
  // instructions is a good part of the shortest calls.
  StageLoader<Config> loader(storage, arguments, window, warp, lane);
  DecodeQuery<Config> query;
  QuerySums<Config> sums;
  const float key_scale = head_scale<Config>(params, params.k_scale, work.tile.kv_head);
  float score_unit = 1.0f;
  RowState<Config> state;
  state.clear();
  const RowPlace* const rows = storage.rows[warp];
  int stage = 0;
  int left = -(Traits::kStages + 1);  // segments; below 0: turns that only copy
  bool is_new = true;
  int slot = Traits::kStages - 1;
#pragma unroll 1
  while (true) {
    const Segment& segment =
        storage.segments[warp][max(left, 0) % DecodeStorage<Config>::kSegments];
    const Destination<Config> destination(arguments, work, segment, rows, warp, lane);
    bool is_complete = false;
    if (left < 0) {
      ++left;
    } else {
      if (is_new) {
        is_new = false;
        stage = segment.stages.begin;
        place_rows<Config>(storage.rows[warp], params, work.tile, segment, lane);
        const auto scale = query_scale<Config>(params, rows, segment.rows, lane);
        score_unit = key_scale * scale.unit;
        if constexpr (!Traits::kQueryInRegisters) {
          store_query(storage, params, rows, segment.rows, scale);
          __syncthreads();  // Q is visible to all warps
        }
        query.load(storage, params, rows, segment.rows, scale, lane);
        sums.add_up(query, lane);
      }
      copy_async_wait<Traits::kStages - 1>();
      __syncwarp();  // the copies of all lanes have landed
      compute_piece(state,
                    storage.ring[warp][slot],
                    query,
                    sums,
                    segment,
                    rows,
                    params.inv_sqrt_dh * kLog2E * score_unit,
                    stage * Traits::kCtaS + warp * Traits::kWarpTokens,
                    lane);
      __syncwarp();  // all lanes are done with the slot
      is_complete = ++stage == segment.stages.end;
      if (is_complete) {
        merge_warps(
            state,
            storage,
            slot,
            segment.rows,
            head_scale<Config>(params, params.v_scale, work.tile.kv_head),
            warp,
            lane,
            [&](int row, const MergedRow<Config>& merged) { destination.leave(row, merged); });
      }
    }
    loader.advance(slot);
    slot = slot + 1 == Traits::kStages ? 0 : slot + 1;

    // 4. The segment has left; where it was the last of its tile, put all of them together.
    if (is_complete) {
      destination.reduce();
      state.clear();  // here, so that the accumulators need no registers before
      is_new = true;
      if (++left == loader.entered()) {
        return;
      }
    }
  }
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage : sm80::DecodeStorage<Config> {};

}  // namespace attn
