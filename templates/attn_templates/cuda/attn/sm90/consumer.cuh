// SPDX-License-Identifier: Apache-2.0
// A consumer warpgroup: 64 query rows of one tile after another, against the key blocks that the
// loader brings.
//
// For each tile, with blocks n = end - 1 .. first:
//
//   S = Q K_n^T        P = 2^(S * scale - reference)        O += P V_n        out = O / sum
//
// Q.K of a block runs together with P.V of the block before, and its softmax beside that P.V. The
// tensor cores never drain between tiles: the first Q.K of the next tile is issued right behind the
// last P.V of this one, and the output leaves meanwhile. Consumers issue in turn, so that the
// softmax of one meets the products of another.
#pragma once

#include "attn/sm90/mask.cuh"
#include "attn/sm90/output.cuh"
#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/softmax.cuh"
#include "attn/sm90/wgmma.cuh"

namespace attn::sm90 {

template <class Traits>
class Consumer {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Softmax = OnlineSoftmax<T, Traits::kCtaS / 2>;
  using Probabilities = typename Softmax::Probabilities;

  static constexpr bool kOptimistic = Traits::kSoftmaxForm == SoftmaxForm::kOptimistic;
  static constexpr bool kThroughQuery = Traits::kOutputRoute == OutputRoute::kThroughQuery;

 public:
  __device__ __forceinline__ Consumer(Storage& storage, const Arguments<T>& arguments, int index)
      : storage_(storage),
        arguments_(arguments),
        softmax_(arguments.params.inv_sqrt_dh),
        index_(index),
        thread_(threadIdx.x % 128),
        signals_(thread_ == 0),
        opaque_zero_(static_cast<uint32_t>(arguments.section) >> 31) {}

  __device__ __forceinline__ void run() {
    // 1. The first tile: what each later tile finds already done.
    if (Traits::kConsumers > 1 && index_ == 0) {
      named_barrier_arrive(turn_barrier(0), 256);  // the first turn is consumer 0's
    }
    next_item();
    if (has_work()) {
      wait_keys();  // K of the first block has landed
      issue_scores();
    }
    while (has_work()) {
      // 2. The first block, whose Q.K is running.
      first_block();
      // 3. Every later block, together with P.V of the one before.
      later_blocks();
      // 4. The last P.V, the next tile's first Q.K, and the output.
      finish_tile();
    }
    // 5. Nothing of this warpgroup may be running when it leaves.
    wgmma_wait<0>();
    send_late_half();
    if (lane() == 0) {
      wait_stores();
    }
  }

 private:
  // --- the tile --------------------------------------------------------------------------------

  __device__ __forceinline__ bool has_work() const { return end_block_ > 0; }

  __device__ __forceinline__ const WorkItem& item() const {
    return storage_.items[kThroughQuery ? queries_.slot : queries_.phase][index_];
  }

  // Waits for the Q of the next tile, which comes with its item.
  __device__ __forceinline__ void next_item() {
    storage_.q_full[queries_.slot][index_].wait(queries_.phase);  // Q and the item are visible
    first_block_ = warp_uniform(item().first_block);
    end_block_ = warp_uniform(item().end_block);
  }

  __device__ __forceinline__ void first_block() {
    const int first_query = item().first_query + index_ * Traits::kConsumerRows;
    const int rows = item().q_len - first_query;  // that exist, of this warpgroup
    const int last_query = first_query + min(Traits::kConsumerRows, max(rows, 1)) - 1;
    int block = end_block_ - 1;  // the last that this warpgroup sees something of, or the first
    if constexpr (Traits::Config::kMask == Mask::kCausal) {
      const int last_seen = (visible().end(last_query) - 1) / Traits::kCtaS;
      block = warp_uniform(min(max(last_seen, first_block_), block));
    }
    const TileRange unmasked = unmasked_blocks(
        visible().all(first_query, last_query), Traits::kCtaS, {first_block_, end_block_});
    unmasked_ = {warp_uniform(unmasked.begin), warp_uniform(unmasked.end)};

    const bool masked = block >= unmasked_.end || block < unmasked_.begin;
    const ColumnLimits ends = column_ends(visible(), query(), block * Traits::kCtaS, lane());

    wgmma_wait<0>();  // S is complete
    pin_registers(scores_);
    release_keys();
    if constexpr (Traits::Config::kMask == Mask::kCausal) {
      skip_blocks(block);
    }
    if (block == first_block_) {
      release_query();
    }
    if (masked) {
      mask(block, ends);
    }
    softmax_.first(scores_, p_, first_row() < rows, first_row() + 8 < rows);
    release_output_rows();
    send_late_half();
#pragma unroll
    for (int i = 0; i < kOutput; ++i) {
      output_[i] = 0.0f;
    }
    if ((block + 1) * Traits::kCtaS > item().k_len) {
      clear_values(item().k_len - block * Traits::kCtaS);
    }
  }

  // Under a causal mask the upper warpgroups of a tile see nothing of its last blocks: those get no
  // softmax and no P.V, only the Q.K of the block before them. A skipped block takes a turn and
  // hands its slots back like any other, so that all consumers keep step.
  __device__ __forceinline__ void skip_blocks(int last_block) {
#pragma unroll 1
    while (end_block_ - 1 > last_block) {
      wait_keys();                                        // K of the block before has landed
      storage_.v_full[values_.slot].wait(values_.phase);  // the phase handed back has begun
      wait_turn();
      issue_scores();
      pass_turn();
      wgmma_wait<0>();  // S is complete, so all four warps are past their waits
      pin_registers(scores_);
      release_keys();
      release_values();
      --end_block_;
    }
  }

  // Zeros the rows of V behind the end of the sequence, from `row` on: they may hold NaN, and
  // 0 * NaN would spoil the output. Every consumer does, because
  // none waits for another; all write the same.
  __device__ __forceinline__ void clear_values(int row) {
    wait_values();  // nothing more lands in these rows
    char* const first = reinterpret_cast<char*>(&storage_.v[values_.slot]) + row * 128;
    const int chunks = (Traits::kCtaS - row) * 8;  // of 16 bytes
#pragma unroll 1
    for (int chunk = recomputed(thread_); chunk < chunks; chunk += 128) {
#pragma unroll
      for (int panel = 0; panel < Traits::kPanelsV; ++panel) {
        *reinterpret_cast<uint4*>(first + panel * Traits::kKeyPanelBytes + chunk * 16) =
            uint4{0, 0, 0, 0};
      }
    }
    fence_async_proxy();
    // The zeros of all four warps are there, for the products of each.
    named_barrier_sync(clear_barrier(), 128);
  }

  // From the last block to the first: masked ones on the right, unmasked ones, masked ones on the
  // left of a window.
  __device__ __forceinline__ void later_blocks() {
    int block = end_block_ - 2;
    int masked_end = unmasked_.end;
    while (true) {
#pragma unroll 1
      for (; block >= masked_end; --block) {
        single_step<true>(block);
      }
      if (block < first_block_) {
        return;
      }
      if constexpr (kOptimistic) {
#pragma unroll 1
        for (; block > unmasked_.begin; block -= 2) {
          step<false>(block, p_, other_p_);
          step<false>(block - 1, other_p_, p_);
        }
        if (block == unmasked_.begin) {
          single_step<false>(block);
          --block;
        }
      } else {
#pragma unroll 1
        for (; block >= unmasked_.begin; --block) {
          single_step<false>(block);
        }
      }
      masked_end = first_block_;
    }
  }

  // One step that leaves P where it found it.
  template <bool kMasked>
  __device__ __forceinline__ void single_step(int block) {
    if constexpr (kOptimistic) {
      step<kMasked>(block, p_, other_p_);
      // A sum, because after a plain copy both would share the registers that P.V still reads.
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        p_[i] = other_p_[i] + opaque_zero_;
      }
    } else {
      step<kMasked>(block, p_, p_);
    }
  }

  // S = Q K_block^T and O += P V_(block + 1) together; then next_p = softmax(S).
  template <bool kMasked>
  __device__ __forceinline__ void step(int block, Probabilities& p, Probabilities& next_p) {
    wait_keys();  // K of this block has landed
    wait_turn();
    issue_scores();
    if constexpr (Traits::kRescaleFirst) {
      softmax_.rescale(output_);
    }
    wait_values();  // V of the block before has landed
    issue_output(p);
    pass_turn();

    ColumnLimits ends;
    if constexpr (kMasked) {
      ends = column_ends(visible(), query(), block * Traits::kCtaS, lane());
    }
    wgmma_wait<1>();  // S is complete, P.V still runs
    pin_registers(scores_);
    release_keys();
    if (block == first_block_) {
      release_query();
    }
    if constexpr (kMasked) {
      mask(block, ends);
    }
    if constexpr (kOptimistic) {
      softmax_.next_optimistic(scores_, next_p);
    } else {
      softmax_.next_in_place(scores_);
    }

    wgmma_wait<0>();  // P.V is complete: P and O may be touched again
    pin_registers(output_);
    release_values();
    if constexpr (!kOptimistic) {
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        next_p[i] = pack(scores_[2 * i], scores_[2 * i + 1], T{});
      }
    }
    if constexpr (!Traits::kRescaleFirst) {
      softmax_.rescale(output_);
    }
  }

  __device__ __forceinline__ void finish_tile() {
    if constexpr (Traits::kRescaleFirst) {
      softmax_.rescale(output_);
    }
    // Read before the next Q.K is issued: behind it another warp may hand Q back, and the loader
    // write the next item but one in its place.
    const OutputRows rows = output_rows();
    const int slot = queries_.slot;
    wait_turn();
    wait_values();  // V of the first block has landed
    issue_output(p_);

    // After the last tile this product reads what lies in shared memory and nobody reads its
    // result: without a branch the pipeline stays one straight line.
    queries_.advance();
    next_item();
    if (has_work()) {
      wait_keys();  // K of the next tile's first block has landed
    }
    issue_scores();
    pass_turn();

    softmax_.finish();
    wgmma_wait<1>();  // O is complete, the next tile's Q.K runs
    pin_registers(output_);
    release_values();
    if (rows.split != kWholeRow) {
      store_partial<Traits>(arguments_.params, softmax_, output_, rows, lane());
      drop_late_half();
    } else {
      send_output(slot, rows);
      // Behind the fence for TMA, which would wait for these stores.
      store_lse<Traits>(arguments_.params, softmax_, rows, lane());
    }
    unreleased_slot_ = slot;
  }

  // --- slots filled by the loader --------------------------------------------------------------

  __device__ __forceinline__ void wait_keys() const {
    storage_.k_full[keys_.slot].wait(keys_.phase);
    fence_copies();
  }

  __device__ __forceinline__ void wait_values() const {
    storage_.v_full[values_.slot].wait(values_.phase);
    fence_copies();
  }

  // Copies write through another proxy than wgmma reads.
  __device__ __forceinline__ void fence_copies() const {
    if (key_source<Traits>(arguments_.params) == KeySource::kGathered) {
      fence_async_proxy();
    }
  }

  // --- products --------------------------------------------------------------------------------

  // S = Q K^T for the block at keys_, as one group.
  __device__ __forceinline__ void issue_scores() {
    const uint32_t q = row_descriptor(shared_address(&storage_.q[queries_.slot][index_]));
    const uint32_t k = row_descriptor(shared_address(&storage_.k[keys_.slot]));
    pin_registers(scores_);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 16; ++i) {
      multiply_shared<T>(scores_,
                         q + row_step(i, Traits::kQueryPanelBytes),
                         k + row_step(i, Traits::kKeyPanelBytes),
                         i > 0);
    }
    wgmma_commit();
  }

  // O += P V for the block at values_, as one group.
  __device__ __forceinline__ void issue_output(Probabilities& p) {
    const uint32_t v =
        column_descriptor(shared_address(&storage_.v[values_.slot]), Traits::kKeyPanelBytes);
    pin_registers(output_);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Traits::kCtaS / 16; ++i) {
      multiply_registers<T>(output_, &p[4 * i], v + column_step(i));
    }
    wgmma_commit();
  }

  // Ping-pong. A turn's barrier counts its owner and the consumer before it.
  __device__ __forceinline__ static int turn_barrier(int consumer) { return 1 + consumer; }

  // A consumer's own.
  __device__ __forceinline__ int clear_barrier() const { return 1 + Traits::kConsumers + index_; }

  __device__ __forceinline__ void wait_turn() {
    if constexpr (Traits::kConsumers > 1) {
      named_barrier_sync(turn_barrier(index_), 256);
    }
  }

  __device__ __forceinline__ void pass_turn() {
    if constexpr (Traits::kConsumers > 1) {
      named_barrier_arrive(turn_barrier(index_ + 1 == Traits::kConsumers ? 0 : index_ + 1), 256);
    }
  }

  // --- slots handed back to the loader -------------------------------------------------------

  // A product that has ended has ended for all four warps: one thread signals for the warpgroup.
  __device__ __forceinline__ void release_keys() {
    if (signals_) {
      storage_.k_empty[keys_.slot].arrive();
    }
    keys_.advance();
  }

  __device__ __forceinline__ void release_values() {
    if (signals_) {
      storage_.v_empty[values_.slot].arrive();
    }
    values_.advance();
  }

  // After the last Q.K of a tile, unless the output still needs the rows of Q.
  __device__ __forceinline__ void release_query() {
    if (!kThroughQuery && signals_) {
      storage_.q_empty[queries_.slot][index_].arrive();
    }
  }

  // The rows of Q through which this warp sent the output of the tile before, once TMA has read
  // them.
  __device__ __forceinline__ void release_output_rows() {
    if (kThroughQuery && unreleased_slot_ >= 0 && lane() == 0) {
      wait_stores_read();
      storage_.q_empty[unreleased_slot_][index_].arrive();
    }
  }

  // --- rows ------------------------------------------------------------------------------------

  // Within the warpgroup.
  __device__ __forceinline__ int warp() const { return recomputed(thread_) / 32u; }
  __device__ __forceinline__ int lane() const { return recomputed(thread_) % 32u; }

  // First of this thread's two rows within the warpgroup; the other is 8 further.
  __device__ __forceinline__ int first_row() const {
    return warp() * Traits::kWarpRows + lane() / 4;
  }

  __device__ __forceinline__ VisibleKeys visible() const {
    return {item().q_len,
            item().k_len,
            arguments_.params.window_size,
            Traits::Config::kMask == Mask::kCausal};
  }

  // The first query of this thread; the other is 8 further.
  __device__ __forceinline__ int query() const {
    return item().first_query + index_ * Traits::kConsumerRows + first_row();
  }

  __device__ __forceinline__ void mask(int block, const ColumnLimits& ends) {
    mask_from(scores_, ends);
    if (arguments_.params.window_size > 0) {
      mask_before(scores_, column_begins(visible(), query(), block * Traits::kCtaS, lane()));
    }
  }

  __device__ __forceinline__ OutputRows output_rows() const {
    const int row = index_ * Traits::kConsumerRows + warp() * Traits::kWarpRows;  // within the tile
    return {item().first_token + row,
            item().head,
            warp_uniform(item().q_len - item().first_query - row),
            warp_uniform(item().split)};
  }

  // --- the output ------------------------------------------------------------------------------

  __device__ __forceinline__ void send_output(int slot, OutputRows rows) {
    const float first = softmax_.inverse(0);
    const float second = softmax_.inverse(1);
    if constexpr (kThroughQuery) {
      // Through this warp's own 16 rows of the finished Q: nobody else reads or writes them.
      char* const own =
          reinterpret_cast<char*>(&storage_.q[slot][index_]) + warp() * Traits::kWarpRows * 128;
      const StagedPanels panels{own, Traits::kQueryPanelBytes};
      uint32_t packed[kOutput / 2];
      pack_columns<T, 0>(packed, output_, first, second);
      stage_columns(panels, packed, lane());
      send_panels<Traits, Traits::kPanelsV>(arguments_, panels, 0, rows, lane());
    } else {
      // The first panels through the warp's staging now, the others when that is free again.
      uint32_t packed[kOutput / 2 - kLateHalf];
      pack_columns<T, 0>(packed, output_, first, second);
      wait_staging();
      stage_columns(staging(), packed, lane());
      send_panels<Traits, Traits::kEarlyPanels>(arguments_, staging(), 0, rows, lane());
      pack_columns<T, kOutput - 2 * kLateHalf>(late_half_, output_, first, second);
      late_rows_ = rows;
    }
  }

  // The second half of the last tile's output, which waits in registers until the softmax of the
  // next tile's first block is done: by then TMA has read the first half.
  __device__ __forceinline__ void send_late_half() {
    if constexpr (!kThroughQuery) {
      if (late_rows_.count > 0) {
        wait_staging();
        stage_columns(staging(), late_half_, lane());
        send_panels<Traits, Traits::kLatePanels>(arguments_,
                                                 staging(),
                                                 Traits::kEarlyPanels * Traits::kPanelColumns,
                                                 late_rows_,
                                                 lane());
      }
    }
  }

  // Nothing waits. The registers are set all the same: otherwise they would count as used through
  // the next tile.
  __device__ __forceinline__ void drop_late_half() {
#pragma unroll
    for (int i = 0; i < kLateHalf; ++i) {
      late_half_[i] = 0;
    }
    late_rows_.count = 0;
  }

  __device__ __forceinline__ StagedPanels staging() const {
    auto& rows = storage_.staging[index_ * 4 + warp()];
    return {reinterpret_cast<char*>(&rows), static_cast<int>(sizeof(rows.panel[0]))};
  }

  __device__ __forceinline__ void wait_staging() {
    if (lane() == 0) {
      wait_stores_read();
    }
    __syncwarp();  // TMA has read what the staging held
  }

  // --- state -----------------------------------------------------------------------------------

  static constexpr int kScores = Traits::kCtaS / 2;
  static constexpr int kOutput = Traits::kOutputColumns / 2;
  static constexpr int kLateHalf =
      kThroughQuery ? 1 : Traits::kLatePanels * Traits::kPanelColumns / 4;

  Storage& storage_;
  const Arguments<T>& arguments_;

  float scores_[kScores];
  float output_[kOutput];
  Probabilities p_;
  Probabilities other_p_;  // kOptimistic only
  uint32_t late_half_[kLateHalf];
  Softmax softmax_;

  RingPosition<Traits::kQuerySlots> queries_;
  RingPosition<Traits::kStages> keys_;
  RingPosition<Traits::kStages> values_;

  int first_block_;
  int end_block_;
  TileRange unmasked_;
  OutputRows late_rows_{0, 0, 0, kWholeRow};
  int unreleased_slot_ = -1;

  const int index_;        // of the warpgroup among the consumers
  const uint32_t thread_;  // within the warpgroup
  const bool signals_;
  const uint32_t opaque_zero_;  // 0, but the compiler cannot know
};

}  // namespace attn::sm90
