// SPDX-License-Identifier: Apache-2.0
// The loader: brings Q, K and V of tile after tile to shared memory, ahead of the consumers.
#pragma once

#include "attn/sm90/block_boxes.cuh"
#include "attn/sm90/code_gather.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/gathered_rows.cuh"
#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/tma.cuh"
#include "attn/sm90/token_boxes.cuh"

namespace attn::sm90 {

// Source is a LoaderSource: it brings K and V.
template <class Traits, class Source>
class Loader {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

  // Blocks that are left of a tile when the next one is asked for: as long as finding a tile takes,
  // and no longer, because no other CTA can take what one has claimed.
  static constexpr int kRequestAhead = 4;

 public:
  __device__ __forceinline__ Loader(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage), arguments_(arguments), source_(storage, arguments) {}

  __device__ __forceinline__ void run() {
    if (source_.leads()) {
      prefetch_map(arguments_.q);
      prefetch_map(arguments_.out);
    }
    wait_for_former_launch();  // which may write what is loaded
    uint32_t phase = 0;
    while (true) {
      storage_.work_full.wait(phase);  // the work is visible
      if (storage_.work[phase].item.end_block == 0) {
        break;
      }
      load_tile(phase);
      phase ^= 1;
    }
    dismiss_consumers();
  }

 private:
  // In the order in which the consumers need it: V runs one block behind K.
  __device__ __forceinline__ void load_tile(int work_slot) {
    const auto& work = storage_.work[work_slot];
    const WorkItem& item = work.item;
    source_.begin_tile(work_slot);
    int block = item.end_block - 1;
    if (block <= item.first_block + kRequestAhead) {
      request_next();
    }
    load_keys(block);
    load_queries(work_slot);
    if constexpr (Traits::kSeenApart) {
      seen_phase_ ^= work_slot;  // both slots have been used as often
    }
#pragma unroll 1
    for (; block > item.first_block; --block) {
      if (block - 1 == item.first_block + kRequestAhead) {
        request_next();
      }
      load_keys(block - 1);
      load_values(block);
    }
    source_.look_ahead(work_slot ^ 1);
    load_values(block);
  }

  // Lets the scheduler write the next work in place of the one before this.
  __device__ __forceinline__ void request_next() {
    if (source_.signals()) {
      storage_.work_empty.arrive();
    }
  }

  // Each row group has its own barriers for Q, and its own copy of the item, so that none waits for
  // another.
  __device__ __forceinline__ void load_queries(int work_slot) {
    const auto& work = storage_.work[work_slot];
#pragma unroll 1
    for (int group = 0; group < Traits::kRowGroups; ++group) {
      Barrier& full = storage_.q_full[queries_.slot()][group];
      wait_query_slot(group);
      if (source_.leads()) {
#pragma unroll
        for (int panel = 0; panel < Traits::kPanels; ++panel) {
          load_box(&storage_.q[queries_.slot()][group].panel[panel],
                   arguments_.q,
                   full,
                   query_box(work.item, group, panel),
                   CacheHint::kEvictFirst);
        }
        if constexpr (Traits::kSeenApart) {
          storage_.work_seen[work_slot].wait(seen_phase_);  // what the rows see is visible
        }
        storage_.items[item_slot()][group] = work.item;
        storage_.items[item_slot()][group].seen = work.seen[group];
        full.arrive_and_expect(Traits::kQueryBytes);  // of boxes that are on their way
      }
    }
    queries_.advance();
  }

  __device__ __forceinline__ BoxOrigin query_box(const WorkItem& item, int group, int panel) const {
    const int token = packed_rows(arguments_).token(group * Traits::kConsumerRows);
    return {panel * Traits::kPanelColumns, item.head, item.first_token + token};
  }

  // Refilling a slot as soon as it is free decides whether the consumers wait: what can be done
  // ahead of that is.
  __device__ __forceinline__ void load_keys(int block) {
    source_.prepare(block);
    source_.wait_for_slot(storage_.k_empty[keys_.slot()], keys_.phase() ^ 1);
    source_.load_keys(block, keys_.slot());
    keys_.advance();
  }

  __device__ __forceinline__ void load_values(int block) {
    source_.wait_for_slot(storage_.v_empty[values_.slot()], values_.phase() ^ 1);
    source_.load_values(block, values_.slot());
    values_.advance();
  }

  // An item without blocks, and no Q with it.
  __device__ __forceinline__ void dismiss_consumers() {
#pragma unroll 1
    for (int group = 0; group < Traits::kRowGroups; ++group) {
      wait_query_slot(group);
      if (source_.leads()) {
        storage_.items[item_slot()][group].first_block = 0;
        storage_.items[item_slot()][group].end_block = 0;
        storage_.q_full[queries_.slot()][group].arrive();
      }
    }
  }

  // Waits until a row group has left the Q slot that is filled next. Only the leader fills it.
  __device__ __forceinline__ void wait_query_slot(int group) {
    if (source_.in_leading_warp()) {
      storage_.q_empty[queries_.slot()][group].wait(queries_.phase() ^ 1);
    }
  }

  __device__ __forceinline__ int item_slot() const {
    return Traits::kQuerySlots > 1 ? queries_.slot() : static_cast<int>(queries_.phase());
  }

  Storage& storage_;
  const Arguments<T>& arguments_;
  Source source_;
  uint32_t seen_phase_ = 0;  // of work_seen of the tile's slot
  PackedRingPosition<Traits::kQuerySlots> queries_;
  PackedRingPosition<Traits::kLoadedStages> keys_;
  PackedRingPosition<Traits::kLoadedStages> values_;
};

}  // namespace attn::sm90
