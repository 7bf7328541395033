// SPDX-License-Identifier: Apache-2.0
// What a decode CTA computes, found from the lengths of all sequences: its column and its range.
#pragma once

#include "attn/sm80/decode_many.cuh"

namespace attn::sm80 {

// Q and the block table are read as soon as the lengths are known: they may come to L2 meanwhile.
// What a stale line would hold does not matter, since L2 is where all writes go.
template <class Config>
__device__ __forceinline__ void prefetch(const AttentionParams<typename Config::T>& params) {
  constexpr int kLine = 128;
  constexpr int kThreads = DecodeTraits<Config>::kThreads;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLine;
  const int64_t token_bytes = params.stride * static_cast<int64_t>(sizeof(typename Config::T));
  if (at < params.token_num * token_bytes) {
    prefetch_l2(reinterpret_cast<const char*>(params.q) + at);
  }
  if constexpr (Config::kCache == CacheType::kPaged) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    if (at < static_cast<int64_t>(params.batch_size) * paged.max_blocks * 4) {
      prefetch_l2(reinterpret_cast<const char*>(paged.block_table) + at);
    }
  }
}

// Reads a word of each line of the arguments. A line takes its time when it is first needed: so all
// come together, and before the wait; but behind the first loads, which need few of them.
template <class T>
__device__ __forceinline__ void touch(const DecodeArguments<T>& arguments) {
  constexpr int kLine = 64;
  int seen = 0;
#pragma unroll
  for (int at = 0; at < static_cast<int>(sizeof(arguments)); at += kLine) {
    seen |= *reinterpret_cast<const int*>(reinterpret_cast<const char*>(&arguments) + at);
  }
  pretend_to_use(arguments.params, seen == 0);
}

// A word of each line of a small block table: L1 then has the entry that the first copies need. The
// table exists also where its entries are wild.
template <class Config>
__device__ __forceinline__ int read_table(const AttentionParams<typename Config::T>& params,
                                          int lane) {
  if constexpr (Config::kCache == CacheType::kPaged) {
    constexpr int kEntries = 32;  // of a line
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int64_t entries = static_cast<int64_t>(params.batch_size) * paged.max_blocks;
    return entries == 0 ? 0 : paged.block_table[min(int64_t{lane} * kEntries, entries - 1)];
  } else {
    return 0;
  }
}

// The plan of few sequences: every warp counts all, one to a lane, and has the work in registers at
// once. `work` has its column.
template <class Config>
__device__ __forceinline__ Start plan_few(const DecodeArguments<typename Config::T>& arguments,
                                          CtaWork work,
                                          const Lengths& own,
                                          bool is_one,
                                          int lane) {
  ColumnTotals totals{0, 0, 0, kMaxUnits};
  const int batch = arguments.params.batch_size;
  const Window window =
      is_one ? count_one<Config>(totals, arguments, work.tile, own, lane)
             : count_window<Config>(totals, arguments, work.tile, own, 0, batch, 0, lane);
  totals.units = window.end;
  cut_work(work, totals, arguments.ranges);
  return {work, window};
}

// Finds what a CTA computes, and leaves it in storage as well. Of few sequences every warp counts
// all, one to a lane, and has the work in registers at once: whatever is found before the first key
// is asked for costs each launch its latency. Until `wait` returns, no memory is read. Called by
// all warps.
template <class Config, class Wait>
__device__ __forceinline__ Start make_plan(DecodeStorage<Config>& storage,
                                           const DecodeArguments<typename Config::T>& arguments,
                                           int warp,
                                           int lane,
                                           Wait wait) {
  const AttentionParams<typename Config::T>& params = arguments.params;
  CtaWork work;
  assign_column(work, arguments, arguments.ranges.columns, arguments.ranges.ranges);
  if (params.batch_size > 32 || arguments.plan.q_tiles > 1) {
    prefetch<Config>(params);
    if (Wait::kTakesTime && may_plan_early<Config>(arguments)) {
      Start start{work, {}};
      if (plan_early<Config>(storage, arguments, start, warp, lane, wait)) {
        return start;
      }
    } else {
      wait();
    }
    plan_many<Config>(storage, arguments);
    __syncthreads();  // the work is visible to all warps
    Window none{};    // ends where the first one begins
    none.end = storage.window.end;
    none.first = storage.window.first;
    return {storage.work, none};
  }
  // The launch before this one may still write the lengths: so they are read again behind it, and
  // where they are others, the range is found again. What else a plan may read is read behind it.
  const bool is_one = DecodeTraits<Config>::kHasSpareRegisters && params.batch_size == 1;
  const bool is_early = Wait::kTakesTime && params.offset_q == nullptr;
  if (!is_early) {
    wait();
  }
  auto words = LengthWords::read(params, lane);
  prefetch<Config>(params);
  Start start;
  Lengths own;
  int entry = 0;
  bool is_certain = !is_early;
#pragma unroll 1
  while (true) {
    own = words.lengths(params, is_one, lane);
    start = plan_few<Config>(arguments, work, own, is_one, lane);
    LengthWords now = words;
    if (!is_certain) {
      wait();
      now = LengthWords::read(params, lane);
    }
    entry = read_table<Config>(params, lane);
    is_certain = true;
    if (!__any_sync(kWarp, now != words)) {
      break;
    }
    words = now;
  }
  clear_empty<Config>(arguments, work, start.window, own, warp, DecodeTraits<Config>::kWarps, lane);
  pretend_to_use(params, entry == kNoWord);
  if constexpr (!DecodeTraits<Config>::kHasSpareRegisters) {
    if (threadIdx.x == 0) {
      storage.work = start.work;
    }
    __syncthreads();  // the work is visible to all warps
  }
  return start;
}

}  // namespace attn::sm80
