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

#include "attn/recomputed.cuh"
#include "attn/sm80/ordered_codes.cuh"
#include "attn/sm90/consumer_rows.cuh"
#include "attn/sm90/key_parts.cuh"
#include "attn/sm90/output.cuh"
#include "attn/sm90/output_route.cuh"
#include "attn/sm90/products.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/slots.cuh"
#include "attn/sm90/softmax.cuh"
#include "attn/sm90/split_exchange.cuh"
#include "attn/sm90/warps.cuh"
#include "attn/sm90/work.cuh"

namespace attn::sm90 {

template <class Traits>
class Consumer {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Softmax = OnlineSoftmax<T, Traits::kCtaS / 2, Traits::kSoftmaxForm>;
  using Probabilities = typename Softmax::Probabilities;

  static constexpr bool kOptimistic = Traits::kSoftmaxForm == SoftmaxForm::kOptimistic;
  static constexpr bool kHasFactors = Traits::Kv::kType == KvType::kE4m3;  // of each KV head
  static constexpr float kUnit = sm80::kStoredUnit<T, typename Traits::Config::Tkv>;
  static constexpr int kClearBarrier = Turns<Traits::kConsumers>::kEndOfBarriers;  // + index
  static constexpr int kKeyGroups = Traits::kKeyGroups;

 public:
  __device__ __forceinline__ Consumer(Storage& storage, const Arguments<T>& arguments, int index)
      : arguments_(arguments),
        softmax_(arguments.params.inv_sqrt_dh * kUnit),
        index_(index),
        thread_{threadIdx.x % 128},
        path_(storage, arguments, index % Traits::kRowGroups, thread_),
        slots_(storage, arguments.params, index, thread_.index == 0),
        turns_(index),
        parts_(storage, index),
        splits_(storage, arguments),
        opaque_zero_(static_cast<uint32_t>(arguments.plan.section) >> 31) {}

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

  __device__ __forceinline__ ConsumerRows<Traits> rows() const {
    return {arguments_, item(), index_ % Traits::kRowGroups, thread_};
  }

  __device__ __forceinline__ void mask(int block, const ColumnLimits& ends) {
    mask_from(scores_, ends);
    if (arguments_.params.window_size > 0) {
      mask_before(scores_, rows().begins_in(block));
    }
  }

  // Waits for the Q of the next tile, which comes with its item.
  __device__ __forceinline__ void next_item() {
    slots_.wait_queries();  // Q and the item are visible
    first_block_ = warp_uniform(item().first_block);
    end_block_ = warp_uniform(item().end_block);
    if constexpr (kKeyGroups > 1) {
      end_block_ -= end_block_ > 0 ? index_ / Traits::kRowGroups : 0;
    }
  }

  __device__ __forceinline__ void first_block() {
    const int block = Traits::kSkips ? warp_uniform(item().seen.last) : end_block_ - 1;
    unmasked_ = {warp_uniform(item().seen.unmasked.begin), warp_uniform(item().seen.unmasked.end)};

    const bool masked = block >= unmasked_.end || block < unmasked_.begin;
    ColumnLimits ends;
    if (masked) {
      ends = rows().ends_in(block);
    }
    const bool first_exists = rows().exists(0);
    const bool second_exists = rows().exists(1);
    if constexpr (kHasFactors) {
      softmax_.set_scale(arguments_.params.inv_sqrt_dh * kUnit * key_factor());
    }

    wgmma_wait<0>();  // S is complete
    pin_registers(scores_);
    slots_.release_keys();
    if constexpr (Traits::kSkips) {
      skip_blocks(block);
    }
    if (is_last(block)) {
      slots_.release_queries();
    }
    if (masked) {
      mask(block, ends);
    }
    softmax_.first(scores_, p_, first_exists, second_exists);
    path_.go_on();
    has_output_ = false;
    if ((block + 1) * Traits::kCtaS > item().k_len && !slots_.values_are_zero_filled()) {
      clear_values(max(item().k_len - block * Traits::kCtaS, 0), Traits::kCtaS);
    }
  }

  // Whether this warpgroup takes no block behind this one, from the last to the first.
  __device__ __forceinline__ bool is_last(int block) const {
    return block < first_block_ + kKeyGroups;
  }

  // Blocks of which nothing is seen get no softmax and no P.V, only the Q.K of the block before
  // them. A skipped block takes a turn and hands its slots back like any other, so that all
  // consumers keep step.
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

  // Zeros the rows [begin, end) of V, which no row of the tile sees: they may hold NaN, and 0 * NaN
  // would spoil the output. Every consumer does, because none waits for another; all write the
  // same.
  __device__ __forceinline__ void clear_values(int begin, int end) {
    slots_.wait_values();  // nothing more lands in these rows
    char* const first = slots_.value_rows() + begin * 128;
    const int chunks = (end - begin) * 8;  // of 16 bytes
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

  // The same in front of a window, in the first block of the tile, which the last key group has.
  __device__ __forceinline__ void clear_values_before_window() {
    if (arguments_.params.window_size > 0 && index_ / Traits::kRowGroups == kKeyGroups - 1) {
      const int rows = first_seen_key<Traits>(item(), arguments_.params);
      if (rows > first_block_ * Traits::kCtaS) {
        clear_values(0, rows - first_block_ * Traits::kCtaS);
      }
    }
  }

  // From the last block to the first: masked ones on the right, unmasked ones, masked ones on the
  // left of a window.
  __device__ __forceinline__ void later_blocks() {
    int block = end_block_ - 1 - kKeyGroups;
    int masked_end = unmasked_.end;
    while (true) {
#pragma unroll 1
      for (; block >= masked_end; block -= kKeyGroups) {
        single_step<true>(block);
      }
      if (block < first_block_) {
        clear_values_before_window();
        return;
      }
      if constexpr (kOptimistic) {
#pragma unroll 1
        for (; block >= unmasked_.begin + kKeyGroups; block -= 2 * kKeyGroups) {
          step<false>(block, p_, other_p_);
          step<false>(block - kKeyGroups, other_p_, p_);
        }
        if (block >= unmasked_.begin) {
          single_step<false>(block);
          block -= kKeyGroups;
        }
      } else {
#pragma unroll 1
        for (; block >= unmasked_.begin; block -= kKeyGroups) {
          single_step<false>(block);
        }
      }
      if (block < first_block_) {
        return;  // every row sees every key of the first block
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
    issue_output<Traits>(output_, p, slots_.values(), has_output_);
    has_output_ = true;
    turns_.pass();

    ColumnLimits ends;
    if constexpr (kMasked) {
      ends = rows().ends_in(block);
    }
    wgmma_wait<1>();  // S is complete, P.V still runs
    pin_registers(scores_);
    slots_.release_keys();
    if (is_last(block)) {
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
    const OutputRows output_rows = rows().output();
    const bool merges = output_rows.split != kWholeRow && splits_.in_cluster();
    const int splits = merges ? rows().splits() : 1;
    const int query_slot = slots_.query_slot();
    const float factor = value_factor();
    issue_last_products();
    if constexpr (kKeyGroups == 1) {
      softmax_.finish();
    }
    wgmma_wait<1>();  // O is complete, the next tile's Q.K runs
    pin_registers(output_);
    slots_.release_values();
    if constexpr (kKeyGroups > 1) {
      if (!parts_.is_first()) {
        parts_.leave(softmax_, output_);
        return;
      }
      parts_.collect(softmax_, output_);
      softmax_.finish();
    }
    if constexpr (kHasFactors || kUnit != 1.0f) {
#pragma unroll
      for (int i = 0; i < kOutput; ++i) {
        output_[i] *= factor * kUnit;
      }
    }
    put_out(output_rows, splits, query_slot);
  }

  // The last P.V of this tile, and the first Q.K of the next.
  __device__ __forceinline__ void issue_last_products() {
    turns_.wait();
    slots_.wait_values();  // V of the first block has landed
    issue_output<Traits>(output_, p_, slots_.values(), has_output_);

    // After the last tile this product reads what lies in shared memory and nobody reads its
    // result: without a branch the pipeline stays one straight line.
    slots_.next_queries();
    next_item();
    if (has_work()) {
      slots_.wait_keys();  // K of the next tile's first block has landed
    }
    issue_scores<Traits>(scores_, slots_.queries(), slots_.keys());
    turns_.pass();
  }

  __device__ __forceinline__ void put_out(const OutputRows& output_rows,
                                          int splits,
                                          int query_slot) {
    if (output_rows.split == kWholeRow) {
      path_.send(softmax_, output_, query_slot, output_rows);
      // Behind the fence for TMA, which would wait for these stores.
      store_lse<Traits>(arguments_, softmax_, output_rows, thread_.lane());
      return;
    }
    if (splits_.in_cluster()) {
      splits_.merge(softmax_, output_, output_rows, splits, kClearBarrier + index_, thread_);
    } else {
      store_partial<Traits>(arguments_, softmax_, output_, output_rows, thread_.lane());
    }
    path_.skip(query_slot);
  }

  // --- what elements of K and V stand for ------------------------------------------------------

  __device__ __forceinline__ int kv_head() const {
    return item().head / (arguments_.pack_heads * arguments_.group_packs);
  }

  __device__ __forceinline__ float key_factor() const {
    return sm80::key_factor<typename Traits::Config>(arguments_.params, kv_head());
  }

  __device__ __forceinline__ float value_factor() const {
    return sm80::value_factor<typename Traits::Config>(arguments_.params, kv_head());
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

  bool has_output_ = false;  // a P.V of this tile has been issued
  int first_block_;
  int end_block_;
  TileRange unmasked_;

  const int index_;  // of the warpgroup among the consumers
  const WarpgroupThread thread_;
  OutputPath<Traits> path_;
  FilledSlots<Traits> slots_;
  Turns<Traits::kConsumers> turns_;
  KeyPartsExchange<Traits> parts_;
  SplitExchange<Traits> splits_;
  const uint32_t opaque_zero_;  // 0, but the compiler cannot know
};

}  // namespace attn::sm90
