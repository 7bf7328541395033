// SPDX-License-Identifier: Apache-2.0
// The computing end of a range: the stages that the loader copies are multiplied with the rows of
// their segment, and each segment is left as soon as it is complete.
#pragma once

#include "attn/sm80/decode_loader.cuh"
#include "attn/sm80/decode_merge.cuh"
#include "attn/sm80/decode_output.cuh"
#include "attn/sm80/decode_products.cuh"
#include "attn/sm80/decode_schedule.cuh"

namespace attn::sm80 {

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
                                              const FragmentPlaces<Config>& places,
                                              int stage,
                                              int warp,
                                              int lane) {
  using Traits = DecodeTraits<Config>;
  if (static_cast<unsigned>(stage) % kSettledStages == 0) {
    state.settle();
  }
  const int first_token = stage * Traits::kCtaS + warp * Traits::kWarpTokens;
#pragma unroll
  for (int i = 0; i < Traits::kUnits; i += Traits::kTogether) {
    const Unit<Config>* const units = piece.units + i;
    const int first = first_token + i * Traits::kUnitTokens;
    const int end = first + Traits::kTogether * Traits::kUnitTokens;
    Scores<Config> scores;
    multiply_key_query<Config>(scores, units, query, places);
    // Nearly all are seen by all rows: one comparison of each end is enough, and no branch between
    // them. What lies in place of others may be anything: their scores are not looked at.
    const KeyRange certain = segment.seen_by_all;
    const bool is_masked = (first < certain.begin) | (end > certain.end);
    if (is_masked && (first >= segment.seen.end || end <= segment.seen.begin)) {
      continue;
    }
    const auto pairs = StepPairs<Config>::load(units, lane);
#pragma unroll
    for (int unit = 0; unit < Traits::kTogether; ++unit) {
      scale_scores<Config>(scores[unit], pairs, unit, sums);
    }
    if (is_masked) {
#pragma unroll
      for (int unit = 0; unit < Traits::kTogether; ++unit) {
        mask_scores<Config>(scores[unit], rows, first + unit * Traits::kUnitTokens, lane);
      }
    }
    state.update(scores, scale, pairs);
    state.values.weigh(scores, pairs);
#pragma unroll
    for (int unit = 0; unit < Traits::kTogether; ++unit) {
      multiply_value_probability<Config>(state, scores[unit], units[unit], places);
    }
  }
}

// The rows of a segment: what is multiplied with its keys.
template <class Config>
struct SegmentRows {
  DecodeQuery<Config> query;
  QuerySums<Config> sums;
  float score_unit;  // what a product is multiplied by to be a scaled score in log2 units
  int stage;         // that comes next

  // Called by all warps.
  __device__ __forceinline__ void begin(DecodeStorage<Config>& storage,
                                        const AttentionParams<typename Config::T>& params,
                                        const RowTile& tile,
                                        const Segment& segment,
                                        float key_scale,
                                        int warp,
                                        int lane) {
    const RowPlace* const rows = storage.rows[warp];
    stage = segment.stages.begin;
    place_rows<Config>(storage.rows[warp], params, tile, segment, lane);
    const auto scale = query_scale<Config>(params, rows, segment.rows, lane);
    score_unit = params.inv_sqrt_dh * kLog2E * key_scale * scale.unit;
    if constexpr (!DecodeTraits<Config>::kQueryInRegisters) {
      store_query(storage, params, rows, segment.rows, scale);
      __syncthreads();  // Q is visible to all warps
    }
    query.load(storage, params, rows, segment.rows, scale, lane);
    sums.add_up(query, lane);
  }
};

// The computing end of a range: takes the stages out of the ring as the loader fills it, and leaves
// each segment as soon as it is complete.
template <class Config, class Cluster = NoCluster>
class RangeComputer {
  using Traits = DecodeTraits<Config>;
  using Storage = DecodeStorage<Config>;
  using Goal = Destination<Config, Cluster>;

 public:
  __device__ __forceinline__ RangeComputer(Storage& storage,
                                           const DecodeArguments<typename Config::T>& arguments,
                                           const CtaWork& work,
                                           const Cluster& cluster,
                                           int warp,
                                           int lane)
      : storage_(storage),
        arguments_(arguments),
        work_(work),
        cluster_(cluster),
        key_scale_(
            head_scale<Config>(arguments.params, arguments.params.k_scale, work.tile.kv_head)),
        places_(FragmentPlaces<Config>::of_lane(lane)),
        warp_(warp),
        lane_(lane) {}

  // The whole range. One loop body fills the ring and does all that follows: a cold launch waits
  // for its instructions as it does for its keys. Called by all warps.
  __device__ __forceinline__ void run(StageLoader<Config>& loader) {
    const bool has_looked_up = loader.next_segment() > 0;
    int filling = Traits::kStages + (has_looked_up ? 0 : 1);  // turns until the ring is full
    bool has_begun = false;
    int slot = has_looked_up ? 0 : -1;
#pragma unroll 1
    while (true) {
      // 1. A stage is computed, and its segment leaves with it where it was the last one.
      bool is_complete = false;
      bool is_over = false;
      if (filling > 0) {
        --filling;
      } else {
        compute_stage(slot);
        is_complete = rows_.stage == segment().stages.end;
        if (is_complete) {
          leave_segment(slot);
          is_over = segment_ == loader.next_segment() && loader.is_at_end(work_);
        }
      }

      // 2. Its slot takes another one.
      if (!is_over) {
        if (is_complete) {
          __syncthreads();  // all have read the rows: the slot may be filled again
        }
        loader.advance(slot, work_);
        slot = slot + 1 == Traits::kStages ? 0 : slot + 1;
        if (filling > 0 && loader.is_at_end(work_)) {
          loader.skip(filling);
          filling = slot = 0;
        }
      }

      // 3. The next segment begins; where the last one was the last of its tile to arrive, all of
      // them are put together.
      if (is_complete || (filling == 0 && !has_begun)) {
        change_segments(is_complete, is_over);
        if (!has_begun) {
          has_begun = true;
          meet_cluster();
        }
        if (is_over) {
          return;
        }
      }
    }
  }

 private:
  __device__ __forceinline__ const Segment& segment() const {
    return storage_.segments[warp_][segment_];
  }

  __device__ __forceinline__ const Segment& last_segment() const {
    return storage_.segments[warp_][segment_ == 0 ? Storage::kSegments - 1 : segment_ - 1];
  }

  __device__ __forceinline__ void compute_stage(int slot) {
    copy_async_wait<Traits::kStages - 1>();
    __syncwarp();  // the copies of all lanes have landed
    compute_piece(state_,
                  storage_.ring[warp_][slot],
                  rows_.query,
                  rows_.sums,
                  segment(),
                  storage_.rows[warp_],
                  rows_.score_unit,
                  places_,
                  rows_.stage,
                  warp_,
                  lane_);
    __syncwarp();  // all lanes are done with the slot
    ++rows_.stage;
  }

  // Called by all warps.
  __device__ __forceinline__ void leave_segment(int slot) {
    const auto& params = arguments_.params;
    const Goal destination = goal_of(segment());
    const float value_scale = head_scale<Config>(params, params.v_scale, work_.tile.kv_head);
    merge_warps(state_,
                storage_,
                slot,
                segment().rows,
                value_scale,
                warp_,
                lane_,
                [&](int row, const MergedRow<Config>& merged) { destination.leave(row, merged); });
    segment_ = Storage::next_segment(segment_);
  }

  // The next rows of Q are on their way while parts are added up, where registers allow. Called by
  // all warps.
  __device__ __forceinline__ void change_segments(bool is_complete, bool is_over) {
    if (Traits::kHasSpareRegisters && !is_over) {
      begin_segment();
    }
    if (is_complete) {
      goal_of(last_segment()).reduce();
    }
    if (!Traits::kHasSpareRegisters && !is_over) {
      begin_segment();
    }
    state_.clear();  // here, so that the accumulators need no registers before
  }

  // While the first keys are on their way.
  __device__ __forceinline__ void meet_cluster() {
    if constexpr (Cluster::kExists) {
      cluster_.wait_for_others();
      stays_in_cluster_ = Goal::stays_in_cluster(work_, segment(), cluster_);
    }
  }

  __device__ __forceinline__ Goal goal_of(const Segment& segment) const {
    return Goal(arguments_, work_, segment, cluster_, stays_in_cluster_, warp_, lane_);
  }

  __device__ __forceinline__ void begin_segment() {
    rows_.begin(storage_, arguments_.params, work_.tile, segment(), key_scale_, warp_, lane_);
  }

  Storage& storage_;
  const DecodeArguments<typename Config::T>& arguments_;
  const CtaWork& work_;
  const Cluster& cluster_;
  float key_scale_;
  FragmentPlaces<Config> places_;
  int warp_;
  int lane_;
  SegmentRows<Config> rows_;
  RowState<Config> state_;
  int segment_ = 0;                // the place of the one that is computed
  bool stays_in_cluster_ = false;  // the only segment, then
};

// Where registers are scarce, a shuffle tells the compiler that a warp has one value: it is then in
// a uniform register, and is not found again in every turn of the loop.
template <class Config>
__device__ __forceinline__ int own_warp() {
  const int warp = threadIdx.x / 32;
  return DecodeTraits<Config>::kHasSpareRegisters ? warp : __shfl_sync(kWarp, warp, 0);
}

}  // namespace attn::sm80
