// SPDX-License-Identifier: Apache-2.0
// The shared memory of a prefill CTA.
#pragma once

#include "attn/sm90/barriers.cuh"
#include "attn/sm90/code_slots.cuh"
#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/row_tables.cuh"
#include "attn/sm90/work.cuh"

namespace attn::sm90 {

// Room for half of a warp's panels of the output, where they do not leave through Q.
template <class Traits, OutputRoute kRoute = Traits::kOutputRoute>
struct OutputStaging {};

template <class Traits>
struct OutputStaging<Traits, OutputRoute::kThroughStaging> {
  using Panel = typename Traits::T[Traits::kWarpRows * Traits::kPanelColumns];

  struct alignas(1024) WarpRows {
    Panel panel[Traits::kEarlyPanels];
  };

  WarpRows staging[Traits::kRowGroups * 4];
};

// What the consumers of a row group beyond the first leave for the first: an output that is not
// divided yet, and references and sums of the rows; each thread for the same thread of the first.
template <class Traits, int kParts = Traits::kConsumers - Traits::kRowGroups>
struct KeyParts {
  struct Part {
    float4 output[Traits::kOutputColumns / 8][128];
    float4 rows[128];
  };

  Part parts[kParts];
};

template <class Traits>
struct KeyParts<Traits, 0> {};

// Their barriers: every thread arrives for what it has written or read itself.
template <class Traits, int kParts = Traits::kConsumers - Traits::kRowGroups>
struct KeyPartBarriers {
  Barrier full[kParts];
  Barrier empty[kParts];

  __device__ __forceinline__ void init_barriers() {
    for (int part = 0; part < kParts; ++part) {
      full[part].init(128);
      empty[part].init(128);
    }
  }
};

template <class Traits>
struct KeyPartBarriers<Traits, 0> {
  __device__ __forceinline__ void init_barriers() {}
};

// Everything in the shared memory of a CTA. Panels start at multiples of 1024 bytes, as their
// swizzle needs.
template <class Traits>
struct SharedStorage : OutputStaging<Traits>, KeyParts<Traits>, ElementSlots<Traits> {
  using T = typename Traits::T;
  static constexpr int kRowGroups = Traits::kRowGroups;
  using QueryPanel = T[Traits::kConsumerRows * Traits::kPanelColumns];
  using KeyPanel = T[Traits::kCtaS * Traits::kPanelColumns];

  struct alignas(1024) Queries {
    QueryPanel panel[Traits::kPanels];
  };
  struct alignas(1024) Keys {
    KeyPanel panel[Traits::kLoadedPanels];
  };
  struct alignas(1024) Values {
    KeyPanel panel[Traits::kLoadedPanelsV];
  };

  Queries q[Traits::kQuerySlots][kRowGroups];
  // What the loader brings. Over a quantised cache these are codes, which become `elements`.
  Keys k[Traits::kLoadedStages];
  Values v[Traits::kLoadedStages];

  RowTables<Traits> tables;
  PairSlots<Traits> pairs;
  ElementBarriers<Traits> expanded;
  KeyPartBarriers<Traits> part_barriers;

  // full: filled by the loader. empty: handed back by those who read.
  Barrier q_full[Traits::kQuerySlots][kRowGroups];
  Barrier q_empty[Traits::kQuerySlots][kRowGroups];
  Barrier k_full[Traits::kLoadedStages];
  Barrier k_empty[Traits::kLoadedStages];
  Barrier v_full[Traits::kLoadedStages];
  Barrier v_empty[Traits::kLoadedStages];

  // From the scheduler to the loader: the tile that is being loaded, and the next.
  Work<kRowGroups> work[2];
  Barrier work_full;     // kSeenApart: but for what its rows see,
  Barrier work_seen[2];  // which has a barrier for each
  Barrier work_empty;

  // Each row group's current and next items, written by the loader before it fills q_full: one per
  // slot of Q. Of one slot, two are enough: the item after the next is written when the Q of the
  // next has been handed back.
  //
  // All threads of a consumer read them, and one hands Q back for the others of its warp or
  // warpgroup. By then they have issued a product, or a store, of what they have read, so no read
  // of theirs is open. (racecheck follows the thread that arrives alone: where a CTA computes three
  // tiles, it reports these reads, and those of `work` by the other lanes of a loader warp.)
  WorkItem items[Traits::kQuerySlots > 1 ? Traits::kQuerySlots : 2][kRowGroups];
};

}  // namespace attn::sm90
