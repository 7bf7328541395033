// SPDX-License-Identifier: Apache-2.0
// Prefill attention for Hopper: persistent CTAs of one producer warpgroup and one to four consumer
// warpgroups. Each has its role, and they meet at mbarriers alone (shared_storage.cuh):
//
//   scheduler   warp 0: which tile of queries, against which keys (scheduler.cuh, tile_order.cuh)
//   loader      warps 1 to 3: its Q, K and V (loader.cuh, and a source of K and V: token_boxes.cuh
//               and block_boxes.cuh by TMA, gathered_rows.cuh and code_gather.cuh row by row)
//   expander    over a quantised cache, a second producer warpgroup: from the codes that the first
//               brings to elements (code_expander.cuh)
//   consumers   warpgroups of 64 rows of queries: softmax(Q K^T) V (consumer.cuh)
#pragma once

#include "attn/sm90/code_expander.cuh"
#include "attn/sm90/code_pairs.cuh"
#include "attn/sm90/consumer.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/key_source.cuh"
#include "attn/sm90/loader.cuh"
#include "attn/sm90/scheduler.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// Barriers of slots in their first phase: `fillers` fill each, `readers` hand it back.
template <class Barriers, int kSlots>
__device__ __forceinline__ void init_slots(Barriers& barriers,
                                           const Barrier (&)[kSlots],
                                           int fillers,
                                           int readers) {
  for (int slot = 0; slot < kSlots; ++slot) {
    barriers.k_full[slot].init(fillers);
    barriers.k_empty[slot].init(readers);
    barriers.v_full[slot].init(fillers);
    barriers.v_empty[slot].init(readers);
  }
}

// Barriers in their first phase, visible to all threads and to TMA.
template <class Traits>
__device__ __forceinline__ void init_barriers(SharedStorage<Traits>& storage,
                                              KeySource source,
                                              int loader_warps,
                                              int pair_warps) {
  if (threadIdx.x == 0) {
    // Each consumer of a row group hands Q back as a whole, or each warp of the first the 16 rows
    // that its output left through.
    constexpr int kQueryReleases =
        Traits::kOutputRoute == OutputRoute::kThroughQuery ? 4 : Traits::kKeyGroups;
    for (int slot = 0; slot < Traits::kQuerySlots; ++slot) {
      for (int group = 0; group < Traits::kRowGroups; ++group) {
        storage.q_full[slot][group].init(1);
        storage.q_empty[slot][group].init(kQueryReleases);
      }
    }
    if constexpr (Traits::Kv::kIsQuantised) {
      constexpr int kExpanderWarps = 4;
      // One thread announces the bytes of all boxes, or each signals that its copies are complete;
      // so does each thread that brings pairs.
      const int fillers = (source == KeySource::kGathered ? 32 : 1) + pair_warps * 32;
      init_slots(storage, storage.k_full, fillers, kExpanderWarps);
      init_slots(storage.expanded, storage.expanded.k_full, kExpanderWarps, Traits::kRowGroups);
      storage.work_empty.init(loader_warps + pair_warps + kExpanderWarps);
    } else {
      // One thread announces the bytes of all boxes, or each that copies signals that its rows are
      // there.
      const int fillers = source == KeySource::kGathered ? Traits::kCopyWarps * 32 : 1;
      init_slots(storage, storage.k_full, fillers, Traits::kRowGroups);
      storage.work_empty.init(loader_warps);
    }
    storage.tables.init_barriers();
    storage.part_barriers.init_barriers();
    storage.work_full.init(1);
    storage.work_seen[0].init(1);
    storage.work_seen[1].init(1);
    fence_barrier_init();
  }
  __syncthreads();  // no thread meets a barrier that is not set up
}

// A loader of boxes, for keys that may stay in their slots or for any.
template <class Traits, template <class, bool> class Boxes>
__device__ __forceinline__ void run_box_loader(SharedStorage<Traits>& storage,
                                               const Arguments<typename Traits::T>& arguments) {
  if constexpr (Traits::kKeepsKeys) {
    if (keys_stay<Traits>(arguments.params)) {
      Loader<Traits, Boxes<Traits, true>>(storage, arguments).run();
      return;
    }
  }
  Loader<Traits, Boxes<Traits, false>>(storage, arguments).run();
}

// Warps 1 .. of the producers. A kernel holds only the sources that its cache can have.
template <class Traits>
__device__ __forceinline__ void run_loader(SharedStorage<Traits>& storage,
                                           const Arguments<typename Traits::T>& arguments,
                                           KeySource source,
                                           int loader_warps,
                                           int pair_warps,
                                           int warp) {
  constexpr CacheType kCache = Traits::Config::kCache;
  if constexpr (Traits::Kv::kHasPairs) {
    if (warp >= 2) {
      if (pair_warps > 0) {
        PairLoader<Traits>(storage, arguments.params, warp - 2).run();
      }
      return;
    }
  }
  if constexpr (kCache == CacheType::kLinear) {
    if (warp == 1 && elect_one()) {
      run_box_loader<Traits, TokenBoxes>(storage, arguments);
    }
  } else if (source == KeySource::kBlockBoxes) {
    if (warp <= loader_warps) {
      run_box_loader<Traits, BlockBoxes>(storage, arguments);
    }
  } else if constexpr (Traits::Kv::kIsQuantised) {
    if (warp == 1) {
      Loader<Traits, GatheredCodes<Traits>>(storage, arguments).run();
    }
  } else if (warp == 1) {
    AddressWriter<Traits>(storage, arguments).run();
  } else {
    Loader<Traits, GatheredRows<Traits>>(storage, arguments).run();
  }
}

template <class Config>
__device__ __forceinline__ void prefill(SharedStorage<PrefillTraits<Config>>& storage,
                                        const Arguments<typename Config::T>& arguments) {
  using Traits = PrefillTraits<Config>;
  constexpr RegisterBudget kRegisters = Traits::kRegisters;
  const int warpgroup = warp_uniform(threadIdx.x / 128);
  const int warp = warp_uniform(threadIdx.x / 32);
  const KeySource source = key_source<Traits>(arguments.params);
  const int warps = loader_warps<Traits>(arguments.params);
  const int pair_warps = Traits::Kv::kHasPairs && !pairs_come_with_boxes<Traits>(arguments.params)
                             ? Traits::kPairWarps
                             : 0;
  init_barriers<Traits>(storage, source, warps, pair_warps);
  allow_next_launch();  // its CTAs take the places of those that end, and wait as these do

  // The roles share nothing from here on: registers move from the producers to the consumers.
  // Consumers touch memory only for items that they are given: it is the producers who wait.
  if (warpgroup == 0) {
    release_registers<kRegisters.producer>();
    if (warp == 0) {
      schedule_tiles<Traits>(storage, arguments);
    } else {
      run_loader<Traits>(storage, arguments, source, warps, pair_warps, warp);
    }
  } else if (warpgroup < Traits::kProducers) {
    if constexpr (Traits::Kv::kIsQuantised) {
      release_registers<kRegisters.expander>();
      CodeExpander<Traits>(storage).run();
    }
  } else {
    acquire_registers<kRegisters.consumer>();
    Consumer<Traits>(storage, arguments, warpgroup - Traits::kProducers).run();
  }
}

}  // namespace attn::sm90

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage
    : sm90::SharedStorage<sm90::PrefillTraits<Config>> {};

}  // namespace attn
