// SPDX-License-Identifier: Apache-2.0
// Plain decode calls, of the last tokens of few sequences: what makes a call one, and how a range
// over a paged cache is found while the launch before it ends.
#pragma once

#include "attn/sm80/decode_computer.cuh"

namespace attn::sm80 {

// A plain call, with what makes it one written down for the compiler.
template <class Config>
__device__ __forceinline__ DecodeArguments<typename Config::T> plain(
    DecodeArguments<typename Config::T> arguments) {
  AttentionParams<typename Config::T>& params = arguments.params;
  params.window_size = 0;
  params.cp_size = 1;
  params.offset_q = nullptr;
  params.k = nullptr;
  arguments.plan.q_tiles = 1;
  if (DecodeTraits<Config>::kRows == kRowsOfOneToken) {
    arguments.plan.cta_q = 1;
  }
  arguments.ranges.head_tiles = 1;
  arguments.ranges.columns = params.num_kv_heads;
  arguments.ranges.pieces = 0;
  __builtin_assume(params.batch_size <= 32);
  return arguments;
}

// The range of a CTA in a plain call on a paged cache, found before `wait` returns, from the
// lengths that lie in memory by then: what comes before the first key happens while the launch
// before this one ends. That may still write the lengths. So they are read again, and where they
// are others, or none that the block table has room for, the range is found again.
template <class Config, class Wait, class Cluster>
__device__ __forceinline__ void decode_ahead(DecodeStorage<Config>& storage,
                                             const DecodeArguments<typename Config::T>& arguments,
                                             Wait wait,
                                             const Cluster& cluster) {
  using Traits = DecodeTraits<Config>;
  static_assert(Config::kCache == CacheType::kPaged,
                "where other caches begin lies in memory, and may not be read so early");
  const AttentionParams<typename Config::T>& params = arguments.params;
  const PagedIteratorParams& paged = params.paged_iter_params;
  const int64_t room = static_cast<int64_t>(paged.max_blocks) * paged.block_len;
  const int warp = own_warp<Config>();
  const int lane = threadIdx.x % 32;
  const bool is_one = params.batch_size == 1;
  const int sequence = is_one ? 0 : lane;
  CtaWork column;
  assign_column(
      column, arguments, cluster.place(arguments.ranges.columns), arguments.ranges.ranges);
  Lengths own = load_lengths<Reading::kPastL1>(params, sequence);
  asm volatile("" ::: "memory");  // the rest of the arguments comes while lengths are under way
  touch(arguments);
  prefetch<Config>(params);
  bool is_certain = false;
#pragma unroll 1
  while (true) {
    // 1. Which range of the column, and its first segment.
    const Start start = plan_few<Config>(arguments, column, own, is_one, lane);
    const CtaWork& work = start.work;
    const bool has_work = work.units.begin < work.units.end;
    const bool is_possible = is_certain || __all_sync(kWarp, own.keys <= room);
    StageLoader<Config> loader(storage, arguments, start, work, warp, lane);
    if (has_work && is_possible) {
      loader.begin(work);
      if (!is_certain) {
        prefetch_keys<Config>(arguments, work, start.window, warp, lane);
      }
    }

    // 2. The lengths as they are now.
    Lengths found = own;
    if (!is_certain) {
      wait();
      found = load_lengths<Reading::kPastL1>(params, sequence);
    }
    if (has_work && is_possible) {
      loader.look_up();
    }
    is_certain = true;
    if (!is_possible || __any_sync(kWarp, found != own)) {
      own = found;
      continue;
    }

    // 3. Rows that see no key, and the keys of the others.
    clear_empty<Config>(arguments, work, start.window, own, warp, Traits::kWarps, lane);
    if (has_work) {
      RangeComputer<Config, Cluster>(storage, arguments, work, cluster, warp, lane).run(loader);
    }
    return;
  }
}

}  // namespace attn::sm80
