// SPDX-License-Identifier: Apache-2.0
// The plan of a decode launch of any size: all warps of a CTA count sequences, each some chunks.
#pragma once

#include "attn/sm80/decode_prefetch.cuh"

namespace attn::sm80 {

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

// What a warp has counted, for the others.
template <class Config>
__device__ __forceinline__ void keep_totals(DecodeStorage<Config>& storage,
                                            const ColumnTotals& totals,
                                            int warp,
                                            int lane) {
  if (lane == 0) {
    WarpCount& count = storage.counts[warp];
    count.tiles = totals.tiles;
    count.most = totals.most;
    count.fewest = totals.fewest;
  }
}

// What all warps have counted of the first `chunks` chunks.
struct Chunks {
  ColumnTotals totals;
  int before;  // units before the chunk of this lane

  template <class Config>
  __device__ __forceinline__ static Chunks add_up(const DecodeStorage<Config>& storage,
                                                  int chunks,
                                                  int lane) {
    const int units = lane < chunks ? storage.chunk_units[lane] : 0;
    const int sum = inclusive_sum(units, chunks, lane);
    ColumnTotals totals{__shfl_sync(kWarp, sum, chunks - 1), 0, 0, kMaxUnits};
    for (const WarpCount& count : storage.counts) {
      totals.tiles += count.tiles;
      totals.most = max(totals.most, count.most);
      totals.fewest = min(totals.fewest, count.fewest);
    }
    return {totals, lane < chunks ? sum - units : kMaxUnits};
  }

  // The last one that does not begin behind a unit.
  __device__ __forceinline__ int holding(int unit) const {
    return 31 - __clz(__ballot_sync(kWarp, before <= unit));
  }
};

// Counts the units of some chunks of sequences, each by one warp. Called by all warps.
template <class Config>
__device__ __forceinline__ void count_chunks(DecodeStorage<Config>& storage,
                                             const DecodeArguments<typename Config::T>& arguments,
                                             const CtaWork& work,
                                             int span,
                                             int warp,
                                             int lane) {
  using Storage = DecodeStorage<Config>;
  constexpr int kWarps = DecodeTraits<Config>::kWarps;
  constexpr int kTurns = Storage::kChunks / kWarps;
  static_assert(Storage::kChunks % kWarps == 0, "every warp has as many chunks");
  const int batch = arguments.params.batch_size;
  ColumnTotals totals{0, 0, 0, kMaxUnits};
  // All CTAs read all lengths. Each begins with others, or they queue up at the same line of L2.
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const int chunk = (turn + blockIdx.x) % kTurns * kWarps + warp;
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
  keep_totals(storage, totals, warp, lane);
}

// Leaves the work in storage, and the window before the chunk in which the range begins: it ends
// where the chunk does begin. Called by all warps; a barrier must follow.
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
  const auto chunks = Chunks::add_up(storage, Storage::kChunks, lane);

  // 3. The range.
  cut_work(work, chunks.totals, plan);
  const int chunk = chunks.holding(work.units.begin);
  const int end = __shfl_sync(kWarp, chunks.before, chunk);
  if (threadIdx.x == 0) {
    storage.work = work;
    storage.window = {chunk * span - 32, end};  // a window is 32 sequences
  }
}

// --- some hundred sequences ---------------------------------------------------------------------

// Windows of sequences whose lengths each warp keeps.
constexpr int kEarlyWindows = 2;

template <class Config>
constexpr int kMostEarly = kEarlyWindows * DecodeTraits<Config>::kThreads;

// Whether lengths are all that a plan reads, and registers hold them.
template <class Config>
__device__ __forceinline__ bool may_plan_early(
    const DecodeArguments<typename Config::T>& arguments) {
  return DecodeTraits<Config>::kHasSpareRegisters &&
         arguments.params.batch_size <= kMostEarly<Config> && arguments.plan.q_tiles == 1 &&
         arguments.params.offset_q == nullptr;
}

// The lengths of a window of 32 sequences, one to a lane. All CTAs read the same few lines, which
// L2 gives to one after the other: so none asks for windows without sequences.
template <class T>
__device__ __forceinline__ Lengths load_window(const AttentionParams<T>& params,
                                               int first,
                                               int lane) {
  const bool exists = first < params.batch_size;
  const int sequence = min(first + lane, params.batch_size - 1);
  const int first_query = load_past_l1_if(exists, params.cu_q_len + sequence);
  const int last_query = load_past_l1_if(exists, params.cu_q_len + sequence + 1);
  const int first_key = load_past_l1_if(exists, params.cu_k_len + sequence);
  const int last_key = load_past_l1_if(exists, params.cu_k_len + sequence + 1);
  bool has_tokens = first + lane < params.batch_size;
  if (params.finished != nullptr) {
    has_tokens &= __ldcg(reinterpret_cast<const char*>(params.finished) + sequence) == 0;
  }
  return {{first_query, has_tokens ? last_query - first_query : 0}, last_key - first_key};
}

// The plan, made before `wait` returns from the lengths that lie in memory by then. The launch
// before this one may still write them: so they are read again, and where they are others, the plan
// is good for nothing, and false. Called by all warps.
template <class Config, class Wait>
__device__ __forceinline__ bool plan_early(DecodeStorage<Config>& storage,
                                           const DecodeArguments<typename Config::T>& arguments,
                                           Start& start,
                                           int warp,
                                           int lane,
                                           Wait wait) {
  constexpr int kWarps = DecodeTraits<Config>::kWarps;
  const AttentionParams<typename Config::T>& params = arguments.params;
  CtaWork work = start.work;
  // The rings are free until the first copies.
  Lengths* const all = reinterpret_cast<Lengths*>(&storage.ring);  // [kEarlyWindows kWarps, 32]
  static_assert(sizeof(storage.ring) >= kMostEarly<Config> * sizeof(Lengths),
                "the lengths of all sequences fit the rings");

  // 1. Each warp counts some windows.
  Lengths own[kEarlyWindows];
  int units[kEarlyWindows];
#pragma unroll
  for (int i = 0; i < kEarlyWindows; ++i) {
    own[i] = load_window(params, (warp + i * kWarps) * 32, lane);
  }
  ColumnTotals totals{0, 0, 0, kMaxUnits};
#pragma unroll
  for (int i = 0; i < kEarlyWindows; ++i) {
    const int chunk = warp + i * kWarps;
    const Window window =
        count_window<Config>(totals, arguments, work.tile, own[i], chunk * 32, 32, 0, lane);
    units[i] = window.units;
    all[chunk * 32 + lane] = own[i];
    if (lane == 0) {
      storage.chunk_units[chunk] = window.end;
    }
  }
  keep_totals(storage, totals, warp, lane);
  __syncthreads();  // the units and lengths of every window are visible

  // 2. The range, and the window in which it begins.
  const auto chunks = Chunks::add_up(storage, kEarlyWindows * kWarps, lane);
  cut_work(work, chunks.totals, arguments.ranges);
  const int chunk = chunks.holding(work.units.begin);
  const int before = __shfl_sync(kWarp, chunks.before, chunk);
  const Window window = make_window<Config>(
      arguments, work.tile, all[chunk * 32 + lane], chunk * 32, 32, before, lane);
  const int* const first_entry = prefetch_keys<Config>(arguments, work, window, warp, lane);

  // 3. The lengths as they are now. The entry of the first keys is in L1 when they are known.
  wait();
  const int entry = first_entry == nullptr ? 0 : *first_entry;
  bool is_other = false;
#pragma unroll
  for (int i = 0; i < kEarlyWindows; ++i) {
    is_other |= load_window(params, (warp + i * kWarps) * 32, lane) != own[i];
  }
  pretend_to_use(params, entry == kNoWord);
  start = {work, window};
  if (__syncthreads_or(is_other)) {  // the lengths in the rings have been read by all
    return false;
  }

  // 4. Rows that see no key.
#pragma unroll
  for (int i = 0; i < kEarlyWindows; ++i) {
    const Window counted{(warp + i * kWarps) * 32, 0, 0, units[i], own[i], {}};
    clear_empty<Config>(arguments, work, counted, own[i], 0, 1, lane);
  }
  return true;
}

}  // namespace attn::sm80
