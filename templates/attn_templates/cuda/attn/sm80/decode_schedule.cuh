// SPDX-License-Identifier: Apache-2.0
// What a decode CTA computes, found from the lengths of all sequences: its column and its range.
#pragma once

#include "attn/sm80/decode_lengths.cuh"

namespace attn::sm80 {

// --- one column ---------------------------------------------------------------------------------

// The column of this CTA, and which of its ranges. The columns of a range are neighbours.
template <class T>
__device__ __forceinline__ void assign_column(CtaWork& work,
                                              const DecodeArguments<T>& arguments,
                                              int columns,
                                              int ranges) {
  work.ranges = ranges;
  work.range = quotient(blockIdx.x, columns);
  work.column = blockIdx.x - work.range * columns;
  work.tile = row_tile_of(arguments.params, arguments.plan, arguments.ranges, work.column);
}

// A window of sequences, whose tiles are added to the totals.
template <class Config>
__device__ __forceinline__ Window count_window(ColumnTotals& totals,
                                               const DecodeArguments<typename Config::T>& arguments,
                                               const RowTile& tile,
                                               const Lengths& own,
                                               int first,
                                               int count,
                                               int begin,
                                               int lane) {
  const Window window = make_window<Config>(arguments, tile, own, first, count, begin, lane);
  const int units = window.units;
  totals.tiles += __popc(__ballot_sync(kWarp, units > 0));
  totals.most = max(totals.most, __reduce_max_sync(kWarp, units));
  totals.fewest = min(totals.fewest, __reduce_min_sync(kWarp, units > 0 ? units : kMaxUnits));
  return window;
}

// The only sequence of a launch: what all lanes know, they need not tell each other.
template <class Config>
__device__ __forceinline__ Window count_one(ColumnTotals& totals,
                                            const DecodeArguments<typename Config::T>& arguments,
                                            const RowTile& tile,
                                            const Lengths& own,
                                            int lane) {
  const SeenKeys seen = seen_by_tile(arguments.params, 0, own, tile);
  const int units = units_of<Config>(arguments, seen.by_some);
  totals = {units, units > 0 ? 1 : 0, units, units};
  return {0, units, lane == 0 ? 0 : units, units, own, seen};
}

// Zeros, and an lse of -inf, for sequences of a window that see no key. Range r of a column sees to
// those whose index is r modulo the ranges, this warp to the rows first_row, first_row + step, ...
template <class Config>
__device__ __forceinline__ void clear_empty(const DecodeArguments<typename Config::T>& arguments,
                                            const CtaWork& work,
                                            const Window& window,
                                            const Lengths& own,
                                            int first_row,
                                            int step,
                                            int lane) {
  const bool is_empty = window.units == 0 && work.tile.tokens_of(own.tokens.count) > 0;
  if (__any_sync(kWarp, is_empty)) {
    const bool is_own = is_empty && (window.first + lane) % work.ranges == work.range;
    const unsigned lanes = __ballot_sync(kWarp, is_own);
    const auto empty = EmptyRows<typename Config::T>::of(arguments);
    clear_rows<Config>(empty, work.tile, own.tokens, lanes, first_row, step);
  }
}

// The range of this CTA; not below cut.ranges where there is nothing to compute.
__device__ __forceinline__ void cut_work(CtaWork& work,
                                         const ColumnTotals& totals,
                                         const RangePlan& plan) {
  work.cut = cut_column(totals, plan, work.ranges);
  work.units = {0, 0, 0, 0};
  if (work.range < work.cut.ranges) {
    work.units = units_of_range(work.cut, work.range);
  }
  work.streamed = totals.units <= plan.streamed_units;
}

// --- calls of any size --------------------------------------------------------------------------

// The most query tokens of a sequence. Called by all warps.
template <class Config>
__device__ __forceinline__ int longest_query(DecodeStorage<Config>& storage,
                                             const AttentionParams<typename Config::T>& params) {
  using Traits = DecodeTraits<Config>;
  int tokens = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < params.batch_size; i += Traits::kThreads) {
    tokens = max(tokens, load_lengths(params, i).tokens.count);
  }
  tokens = __reduce_max_sync(kWarp, tokens);
  if (threadIdx.x % 32 == 0) {
    storage.counts[threadIdx.x / 32].tokens = tokens;
  }
  __syncthreads();  // the longest query of each warp's sequences is visible
#pragma unroll
  for (int warp = 0; warp < Traits::kWarps; ++warp) {
    tokens = max(tokens, storage.counts[warp].tokens);
  }
  return tokens;
}

// Counts the units of some chunks of sequences, each by one warp. Called by all warps.
template <class Config>
__device__ __forceinline__ void count_chunks(DecodeStorage<Config>& storage,
                                             const DecodeArguments<typename Config::T>& arguments,
                                             const CtaWork& work,
                                             int span,
                                             int warp,
                                             int lane) {
  using Storage = DecodeStorage<Config>;
  const int batch = arguments.params.batch_size;
  ColumnTotals totals{0, 0, 0, kMaxUnits};
#pragma unroll 1
  for (int chunk = warp; chunk < Storage::kChunks; chunk += DecodeTraits<Config>::kWarps) {
    int end = 0;
#pragma unroll 1
    for (int first = chunk * span; first < min((chunk + 1) * span, batch); first += 32) {
      const Lengths own = load_lengths(arguments.params, first + lane);
      const Window window =
          count_window<Config>(totals, arguments, work.tile, own, first, 32, end, lane);
      clear_empty<Config>(arguments, work, window, own, 0, 1, lane);
      end = window.end;
    }
    if (lane == 0) {
      storage.chunk_units[chunk] = end;
    }
  }
  if (lane == 0) {
    WarpCount& count = storage.counts[warp];
    count.tiles = totals.tiles;
    count.most = totals.most;
    count.fewest = totals.fewest;
  }
}

// Leaves the work in storage, and the window before the chunk in which the range begins. Called by
// all warps; a barrier must follow.
template <class Config>
__device__ __forceinline__ void plan_many(DecodeStorage<Config>& storage,
                                          const DecodeArguments<typename Config::T>& arguments) {
  using Storage = DecodeStorage<Config>;
  const int lane = threadIdx.x % 32;
  const RangePlan& plan = arguments.ranges;

  // 1. Longer queries than a tile holds make more columns.
  const int cta_q = arguments.plan.cta_q;
  const int tokens = arguments.plan.q_tiles == 1 ? 1 : longest_query(storage, arguments.params);
  CtaWork work;
  if (tokens > cta_q) {
    const int columns = plan.columns * ((tokens + cta_q - 1) / cta_q);
    assign_column(work, arguments, columns, max(plan.ctas / columns, 1));
  } else {
    assign_column(work, arguments, plan.columns, plan.ranges);
  }

  // 2. Chunks are whole windows.
  constexpr int kStep = 32 * Storage::kChunks;
  const int span = (arguments.params.batch_size + kStep - 1) / kStep * 32;
  count_chunks<Config>(storage, arguments, work, span, threadIdx.x / 32, lane);
  __syncthreads();  // the units of every chunk are visible
  const int units = storage.chunk_units[lane];
  const int before = inclusive_sum(units, Storage::kChunks, lane) - units;
  ColumnTotals totals{__shfl_sync(kWarp, before + units, 31), 0, 0, kMaxUnits};
  for (const WarpCount& count : storage.counts) {
    totals.tiles += count.tiles;
    totals.most = max(totals.most, count.most);
    totals.fewest = min(totals.fewest, count.fewest);
  }

  // 3. The range.
  cut_work(work, totals, plan);
  const int chunk = 31 - __clz(__ballot_sync(kWarp, before <= work.units.begin));
  const int end = __shfl_sync(kWarp, before, chunk);
  if (threadIdx.x == 0) {
    storage.work = work;
    storage.window = {chunk * span - 32, end};
  }
}

// --- the plan of a CTA --------------------------------------------------------------------------

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

// What is read for the sake of a cache must have a use, or it is not read. This one does no harm.
template <class T>
__device__ __forceinline__ void pretend_to_use(const AttentionParams<T>& params, bool is_unlikely) {
  if (is_unlikely) {
    prefetch_l2(params.out);
  }
}

constexpr int kNoWord = static_cast<int>(0x80000000u);  // neither an entry nor much else

// Reads a word of each line of the arguments. A line takes its time when it is first needed: so all
// come together, and before the wait.
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

// Where a CTA begins.
struct Start {
  CtaWork work;   // as in storage; units is empty where there is nothing to compute
  Window window;  // does not lie behind the first sequence of the range
};

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
  wait();
  if (params.batch_size > 32 || arguments.plan.q_tiles > 1) {
    prefetch<Config>(params);
    plan_many<Config>(storage, arguments);
    __syncthreads();  // the work is visible to all warps
    Window none{};    // ends where the first one begins
    none.first = storage.window.first;
    none.end = storage.window.end;
    return {storage.work, none};
  }
  const bool is_one = DecodeTraits<Config>::kHasSpareRegisters && params.batch_size == 1;
  const Lengths own = load_lengths(params, is_one ? 0 : lane);
  const int entry = read_table<Config>(params, lane);
  prefetch<Config>(params);
  const Start start = plan_few<Config>(arguments, work, own, is_one, lane);
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
