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
#include "attn/sm90/output_route.cuh"
#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/products.cuh"
#include "attn/sm90/slots.cuh"
#include "attn/sm90/softmax.cuh"

namespace attn::sm90 {

template <class Traits>
class Consumer {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Softmax = OnlineSoftmax<T, Traits::kCtaS / 2>;
  using Probabilities = typename Softmax::Probabilities;

  static constexpr bool kOptimistic = Traits::kSoftmaxForm == SoftmaxForm::kOptimistic;
  static constexpr int kClearBarrier = Turns<Traits::kConsumers>::kEndOfBarriers;  // + index

 public:
  __device__ __forceinline__ Consumer(Storage& storage, const Arguments<T>& arguments, int index)
      : arguments_(arguments),
        softmax_(arguments.params.inv_sqrt_dh),
        index_(index),
        thread_{threadIdx.x % 128},
        path_(storage, arguments, index, thread_),
        slots_(storage, arguments.params, index, thread_.index == 0),
        turns_(index),
        opaque_zero_(static_cast<uint32_t>(arguments.section) >> 31) {}

  __device__ __forceinline__ void run() {
    // 1. The first tile: what each later tile finds already done.
    turns_.begin();
    next_item();
    if (has_work()) {
      slots_.wait_keys();  // K of the first block has landed
      issue_scores<Traits>(scores_, slots_.queries(), slots_.keys());
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
    path_.end();
  }

 private:
  // --- the tile --------------------------------------------------------------------------------

  __device__ __forceinline__ bool has_work() const { return end_block_ > 0; }

  __device__ __forceinline__ const WorkItem& item() const { return slots_.item(); }

  // Waits for the Q of the next tile, which comes with its item.
  __device__ __forceinline__ void next_item() {
    slots_.wait_queries();  // Q and the item are visible
    first_block_ = warp_uniform(item().first_block);
    end_block_ = warp_uniform(item().end_block);
  }

  __device__ __forceinline__ void first_block() {
    const int rows = rows_from(index_ * Traits::kConsumerRows);  // that exist, of this warpgroup
    const int first_query = query_of(index_ * Traits::kConsumerRows);
    const int last_query =
        query_of(index_ * Traits::kConsumerRows + min(Traits::kConsumerRows, max(rows, 1)) - 1);
    int block = end_block_ - 1;  // the last that this warpgroup sees something of, or the first
    if constexpr (Traits::Config::kMask == Mask::kCausal) {
      const int last_seen = (visible().end(last_query) - 1) / Traits::kCtaS;
      block = warp_uniform(min(max(last_seen, first_block_), block));
    }
    const TileRange unmasked = unmasked_blocks(
        visible().all(first_query, last_query), Traits::kCtaS, {first_block_, end_block_});
    unmasked_ = {warp_uniform(unmasked.begin), warp_uniform(unmasked.end)};

    const bool masked = block >= unmasked_.end || block < unmasked_.begin;
    const ColumnLimits ends = column_ends(visible(), queries(), block * Traits::kCtaS, lane());

    wgmma_wait<0>();  // S is complete
    pin_registers(scores_);
    slots_.release_keys();
    if constexpr (Traits::Config::kMask == Mask::kCausal) {
      skip_blocks(block);
    }
    if (block == first_block_) {
      slots_.release_queries();
    }
    if (masked) {
      mask(block, ends);
    }
    softmax_.first(scores_, p_, first_row() < rows, first_row() + 8 < rows);
    path_.go_on();
#pragma unroll
    for (int i = 0; i < kOutput; ++i) {
      output_[i] = 0.0f;
    }
    if ((block + 1) * Traits::kCtaS > item().k_len && !slots_.values_are_zero_filled()) {
      clear_values(item().k_len - block * Traits::kCtaS);
    }
  }

  // Under a causal mask the upper warpgroups of a tile see nothing of its last blocks: those get no
  // softmax and no P.V, only the Q.K of the block before them. A skipped block takes a turn and
  // hands its slots back like any other, so that all consumers keep step.
  __device__ __forceinline__ void skip_blocks(int last_block) {
#pragma unroll 1
    while (end_block_ - 1 > last_block) {
      slots_.wait_keys();    // K of the block before has landed
      slots_.wait_values();  // nobody reads them: the phase that is handed back must have begun
      turns_.wait();
      issue_scores<Traits>(scores_, slots_.queries(), slots_.keys());
      turns_.pass();
      wgmma_wait<0>();  // S is complete, so all four warps are past their waits
      pin_registers(scores_);
      slots_.release_keys();
      slots_.release_values();
      --end_block_;
    }
  }

  // Zeros the rows of V behind the end of the sequence, from `row` on, where the loader has not:
  // they may hold NaN, and
  // 0 * NaN would spoil the output. Every consumer does, because none waits for another; all write
  // the same.
  __device__ __forceinline__ void clear_values(int row) {
    slots_.wait_values();  // nothing more lands in these rows
    char* const first = slots_.value_rows() + row * 128;
    const int chunks = (Traits::kCtaS - row) * 8;  // of 16 bytes
#pragma unroll 1
    for (int chunk = recomputed(thread_.index); chunk < chunks; chunk += 128) {
#pragma unroll
      for (int panel = 0; panel < Traits::kPanelsV; ++panel) {
        *reinterpret_cast<uint4*>(first + panel * Traits::kKeyPanelBytes + chunk * 16) =
            uint4{0, 0, 0, 0};
      }
    }
    fence_async_proxy();
    // The zeros of all four warps are there, for the products of each.
    named_barrier_sync(kClearBarrier + index_, 128);
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
    slots_.wait_keys();  // K of this block has landed
    turns_.wait();
    issue_scores<Traits>(scores_, slots_.queries(), slots_.keys());
    if constexpr (Traits::kRescaleFirst) {
      softmax_.rescale(output_);
    }
    slots_.wait_values();  // V of the block before has landed
    issue_output<Traits>(output_, p, slots_.values());
    turns_.pass();

    ColumnLimits ends;
    if constexpr (kMasked) {
      ends = column_ends(visible(), queries(), block * Traits::kCtaS, lane());
    }
    wgmma_wait<1>();  // S is complete, P.V still runs
    pin_registers(scores_);
    slots_.release_keys();
    if (block == first_block_) {
      slots_.release_queries();
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
    slots_.release_values();
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
    const int query_slot = slots_.query_slot();
    turns_.wait();
    slots_.wait_values();  // V of the first block has landed
    issue_output<Traits>(output_, p_, slots_.values());

    // After the last tile this product reads what lies in shared memory and nobody reads its
    // result: without a branch the pipeline stays one straight line.
    slots_.next_queries();
    next_item();
    if (has_work()) {
      slots_.wait_keys();  // K of the next tile's first block has landed
    }
    issue_scores<Traits>(scores_, slots_.queries(), slots_.keys());
    turns_.pass();

    softmax_.finish();
    wgmma_wait<1>();  // O is complete, the next tile's Q.K runs
    pin_registers(output_);
    slots_.release_values();
    if (rows.split != kWholeRow) {
      store_partial<Traits>(arguments_, softmax_, output_, rows, lane());
      path_.skip(query_slot);
    } else {
      path_.send(softmax_, output_, query_slot, rows);
      // Behind the fence for TMA, which would wait for these stores.
      store_lse<Traits>(arguments_, softmax_, rows, lane());
    }
  }

  // --- rows ------------------------------------------------------------------------------------

  __device__ __forceinline__ int warp() const { return thread_.warp(); }
  __device__ __forceinline__ int lane() const { return thread_.lane(); }

  // First of this thread's two rows within the warpgroup; the other is 8 further.
  __device__ __forceinline__ int first_row() const {
    return warp() * Traits::kWarpRows + lane() / 4;
  }

  __device__ __forceinline__ VisibleKeys visible() const {
    const AttentionParams<T>& params = arguments_.params;
    return {
        item().origin,
        item().k_len,
        params.window_size,
        Traits::Config::kMask == Mask::kCausal,
        {params.cp_size, params.cp_rank, item().chunk, params.cp_sharding == KeySharding::kZigZag}};
  }

  // The query of a row of the tile.
  __device__ __forceinline__ int query_of(int row) const {
    return item().first_query + packed_rows(arguments_).token(row);
  }

  __device__ __forceinline__ QueryPair queries() const {
    const int row = index_ * Traits::kConsumerRows + first_row();
    return {{query_of(row), query_of(row + 8)}};
  }

  // Rows of the tile that exist, from a row on.
  __device__ __forceinline__ int rows_from(int row) const {
    const int tokens = min(item().q_len - item().first_query, Traits::kCtaQ);
    return packed_rows(arguments_).rows(tokens) - row;
  }

  __device__ __forceinline__ void mask(int block, const ColumnLimits& ends) {
    mask_from(scores_, ends);
    if (arguments_.params.window_size > 0) {
      mask_before(scores_, column_begins(visible(), queries(), block * Traits::kCtaS, lane()));
    }
  }

  __device__ __forceinline__ OutputRows output_rows() const {
    const int row = index_ * Traits::kConsumerRows + warp() * Traits::kWarpRows;  // within the tile
    return {item().first_token + packed_rows(arguments_).token(row),
            item().head,
            warp_uniform(rows_from(row)),
            warp_uniform(item().split)};
  }

  // --- state -----------------------------------------------------------------------------------

  static constexpr int kScores = Traits::kCtaS / 2;
  static constexpr int kOutput = Traits::kOutputColumns / 2;

  const Arguments<T>& arguments_;

  float scores_[kScores];
  float output_[kOutput];
  Probabilities p_;
  Probabilities other_p_;  // kOptimistic only
  Softmax softmax_;

  int first_block_;
  int end_block_;
  TileRange unmasked_;

  const int index_;  // of the warpgroup among the consumers
  const WarpgroupThread thread_;
  OutputPath<Traits> path_;
  FilledSlots<Traits> slots_;
  Turns<Traits::kConsumers> turns_;
  const uint32_t opaque_zero_;  // 0, but the compiler cannot know
};

}  // namespace attn::sm90
