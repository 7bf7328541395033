// SPDX-License-Identifier: Apache-2.0
// The shapes of a prefill kernel, derived from its configuration and tile, and its shared memory.
#pragma once

#include "attn/cache_iterator.cuh"
#include "attn/config.h"
#include "attn/sm90/barriers.cuh"
#include "attn/sm90/code_slots.cuh"
#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/row_tables.cuh"
#include "attn/split.cuh"

namespace attn::sm90 {

// When a consumer takes the exponentials of its scores.
enum class SoftmaxForm : int {
  kInPlace,     // after the maximum of the block is known; P replaces the scores
  kOptimistic,  // before it is known, and again if it exceeds the limit; P lies beside them, twice
};

// How the output leaves the registers of a consumer.
enum class OutputRoute : int {
  kThroughQuery,    // through its own rows of Q, which nobody reads any more (Q has two slots)
  kThroughStaging,  // through 16 rows per warp of half the panels, in two turns (Q has one slot)
};

// How K and V come to shared memory.
//
//   cache          block_len          way
//   linear                            kTokenBoxes
//   paged, block   a multiple of 16   kBlockBoxes
//   paged, block   any other          kGathered
//
// Boxes could start at multiples of 8 rows, where the swizzle pattern starts over; but so many
// small ones take longer than the gather.
enum class KeySource : int {
  kTokenBoxes,  // TMA: a box is the rows of a block of keys
  kBlockBoxes,  // TMA: a box is rows of one block of the cache, box_rows() of them
  kGathered,    // one 16-byte copy after another, to a row's address
};

// Registers of a thread, for one producer warpgroup and kConsumers consumer warpgroups of 64 query
// rows each. After the producers have given theirs back, the sum over the warpgroups must not
// exceed what the CTA was launched with (65,536 / threads of an SM, rounded down to a multiple of
// 8, for each warpgroup), or the consumers wait forever. Eight registers less for two consumers of
// 128 columns are 4 % (measured).
template <int kConsumers, int kCtasPerSm>
struct RegisterBudget;

template <>
struct RegisterBudget<1, 1> {  // 255 for every thread: there is nothing to move
  static constexpr int kProducer = 0;
  static constexpr int kConsumer = 0;
};

template <>
struct RegisterBudget<1, 2> {  // of 2 * 128
  static constexpr int kProducer = 40;
  static constexpr int kConsumer = 208;
};

template <>
struct RegisterBudget<2, 1> {  // of 3 * 168
  static constexpr int kProducer = 40;
  static constexpr int kConsumer = 232;
};

template <>
struct RegisterBudget<3, 1> {  // of 4 * 128
  static constexpr int kProducer = 32;
  static constexpr int kConsumer = 160;
};

template <>
struct RegisterBudget<4, 1> {  // of 5 * 96
  static constexpr int kProducer = 32;
  static constexpr int kConsumer = 112;
};

// The same over a quantised cache, with a second producer warpgroup, which turns codes into
// elements.
template <int kConsumers, int kCtasPerSm>
struct CodeRegisterBudget;

template <>
struct CodeRegisterBudget<2, 1> {  // of 4 * 128
  static constexpr int kProducer = 40;
  static constexpr int kExpander = 40;
  static constexpr int kConsumer = 216;
};

template <>
struct CodeRegisterBudget<3, 1> {  // of 5 * 96
  static constexpr int kProducer = 40;
  static constexpr int kExpander = 56;
  static constexpr int kConsumer = 128;
};

template <bool kIsQuantised, int kConsumers, int kCtasPerSm>
struct RegistersOf : RegisterBudget<kConsumers, kCtasPerSm> {
  using Budget = RegisterBudget<kConsumers, kCtasPerSm>;
  static constexpr int kSum = Budget::kProducer + kConsumers * Budget::kConsumer;
};

template <int kConsumers, int kCtasPerSm>
struct RegistersOf<true, kConsumers, kCtasPerSm> : CodeRegisterBudget<kConsumers, kCtasPerSm> {
  using Budget = CodeRegisterBudget<kConsumers, kCtasPerSm>;
  static constexpr int kSum =
      Budget::kProducer + Budget::kExpander + kConsumers * Budget::kConsumer;
};

// Blocks of K, and of V, that the loader has in flight.
template <class Tile, bool kIsQuantised>
struct LoadedStages {
  static constexpr int kCount = Tile::kStages;
};

template <class Tile>
struct LoadedStages<Tile, true> {
  static constexpr int kCount = Tile::kCodeStages;
};

template <class Config_>
struct PrefillTraits {
  using Config = Config_;
  using T = typename Config::T;
  using Tile = TileOf<Config>;

  // Shapes, in elements. Shared memory holds panels of 64 columns; TMA fills what a head has not
  // with zeros.
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kHeadDimV = Config::kHeadDimV;
  static constexpr int kPanelColumns = 64;
  static constexpr int kPanels = (kHeadDim + kPanelColumns - 1) / kPanelColumns;  // of Q and K
  static constexpr int kPanelsV =
      (kHeadDimV + kPanelColumns - 1) / kPanelColumns;  // of V and the output
  static constexpr int kOutputColumns = kPanelsV * kPanelColumns;
  static constexpr int kConsumerRows = 64;  // of Q, one warpgroup's
  static constexpr int kWarpRows = 16;
  static constexpr int kCtaQ = Tile::kCtaQ;
  static constexpr int kCtaS = Tile::kCtaS;

  // Consumer warpgroups: those of a row group have the same 64 rows and take every kKeyGroups-th
  // block of keys each. Consumer i has row group i % kRowGroups and key group i / kRowGroups.
  static constexpr int kRowGroups = kCtaQ / kConsumerRows;
  static constexpr int kKeyGroups = Tile::kKeyGroups;
  static constexpr int kConsumers = kRowGroups * kKeyGroups;

  static constexpr int kStages = Tile::kStages;  // blocks of K, and blocks of V, in flight
  static constexpr int kQuerySlots =
      Tile::kQuerySlots;  // 2: the next tile's Q arrives while this one is computed
  static constexpr SoftmaxForm kSoftmaxForm = Tile::kSoftmaxForm;
  static constexpr OutputRoute kOutputRoute =
      kQuerySlots > 1 ? OutputRoute::kThroughQuery : OutputRoute::kThroughStaging;

  // Wide heads rescale the output while Q.K runs, before P.V is issued; narrow ones after P.V has
  // ended, which keeps the scale factors out of the way of the next softmax.
  static constexpr bool kRescaleFirst = kHeadDimV > 128;

  // The panels of the output that leave first, and those that follow in a second turn.
  static constexpr int kEarlyPanels = (kPanelsV + 1) / 2;
  static constexpr int kLatePanels = kPanelsV - kEarlyPanels;

  // Under a causal mask the upper warpgroups of a tile see nothing of its last blocks. Those are
  // skipped, but where keys are shared out: there all take the same number of blocks.
  static constexpr bool kSkips = Config::kMask == Mask::kCausal && kKeyGroups == 1;

  using Kv = KvTraits<T, typename Config::Tkv>;
  using Cache = CacheIterator<Config::kCache, T, kHeadDim, typename Config::Tkv>;
  static constexpr int kLeastBoxRows = 16;  // of a paged or block cache
  // Producer warps that load boxes: one has the fewest instructions, more issue many boxes sooner.
  static constexpr int kBoxWarps = 3;
  static constexpr int kBoxesOfOneWarp = 2;
  static constexpr int kCopyWarps = 2;  // producer warps that copy rows, where they are gathered
  static constexpr int kCopyRows = kCtaS / kCopyWarps;  // of a block of keys, by one of them
  static constexpr int kPairWarps = 2;  // producer warps that bring pairs, of quantised caches

  // Where one thread alone loads, it has the registers to begin before it is known what the rows of
  // the tile see.
  static constexpr bool kSeenApart = Config::kCache == CacheType::kLinear && !Kv::kIsQuantised;

  static constexpr int kProducers = Kv::kIsQuantised ? 2 : 1;  // warpgroups
  static constexpr int kThreads = (kProducers + kConsumers) * 128;

  // What the CTA is launched with, and what its warpgroups hold once they have traded.
  static constexpr int kWarpgroups = kProducers + kConsumers;
  static constexpr int kLaunchRegisters = 65536 / (kWarpgroups * 128 * Tile::kCtasPerSm) / 8 * 8;
  using Registers = RegistersOf<Kv::kIsQuantised, kConsumers, Tile::kCtasPerSm>;
  static_assert(Registers::kSum <= kLaunchRegisters * kWarpgroups,
                "the producers give back as many registers as the consumers take");

  // A product of 256 columns needs more registers than a thread of so many is launched with.
  static constexpr bool kHalvesOutput = kOutputColumns > 192 && kThreads > 384;

  // What the loader brings: K and V themselves, or blocks of their codes, in panels of as many
  // bytes.
  static constexpr int kLoadedStages = LoadedStages<Tile, Kv::kIsQuantised>::kCount;
  static constexpr int kCodePanels = (Kv::template kRowBytes<kHeadDim> + 127) / 128;
  static constexpr int kLoadedPanels = Kv::kIsQuantised ? kCodePanels : kPanels;
  static constexpr int kLoadedPanelsV = Kv::kIsQuantised ? kCodePanels : kPanelsV;

  // Bytes.
  static constexpr int kQueryPanelBytes = kConsumerRows * kPanelColumns * sizeof(T);
  static constexpr int kKeyPanelBytes = kCtaS * kPanelColumns * sizeof(T);
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;  // of one warpgroup

  static_assert(kCtaQ % kConsumerRows == 0, "a warpgroup multiplies 64 rows");
  static_assert(kCtaS % 16 == 0, "P.V runs 16 keys at a time");
  static_assert(kStages >= 2 * kKeyGroups, "a block is loaded while another is computed");
  static_assert(kKeyGroups == 1 || Config::kCache == CacheType::kLinear,
                "blocks beyond the last key are loaded where only TMA has to know its bounds");
  static_assert(kOutputRoute == OutputRoute::kThroughStaging || kPanelsV <= kPanels,
                "the output leaves through the rows of Q");
  static_assert(kOutputRoute == OutputRoute::kThroughQuery || kLatePanels > 0,
                "the output leaves in two turns of whole panels");
  static_assert(kCopyRows % 8 == 0, "a warp copies 8 rows at a time");
  static_assert(kCtaS % kLeastBoxRows == 0 && kCtaS <= 256,
                "a block of keys consists of whole boxes");
};

// Blocks of keys as the 64 rows of a row group see them.
struct SeenBlocks {
  int last;            // of which some row sees something; the first of the item, where none does
  TileRange unmasked;  // of which every row sees every key
};

// What a consumer warpgroup computes between two outputs: its 64 rows of a query tile against a
// range of key blocks.
struct WorkItem {
  int first_block;  // key blocks [first_block, end_block); none: the consumer may leave
  int end_block;    // a multiple of kKeyGroups further
  int end_key;      // keys from here on are none of the item's, where blocks of them are loaded
  int first_query;  // of the tile, within its sequence
  int q_len;
  int k_len;        // keys of the sequence on this rank
  int origin;       // position of the sequence's query 0
  int chunk;        // keys of a chunk, where the ranks of a group share the sequence
  int head;         // the first, where the tile has several
  int first_token;  // row of q and out that holds first_query
  int split;        // kWholeRow, or the slot of the workspace that takes the result
  SeenBlocks seen;  // by the consumer's rows
};

constexpr int kWholeRow = -1;

// A tile as the loader takes it.
template <int kRowGroups>
struct Work {
  WorkItem item;  // end_block 0: there are no more
  SeenBlocks seen[kRowGroups];
  int sequence;
  int kv_head;
  int key_token;  // kTokenBoxes: row of K and V that holds key 0 of the sequence
};

// Rows of one block of a paged cache that one TMA box takes: as many as divide both the cache's
// blocks and the kernel's, because a box must not leave either.
__device__ __forceinline__ int box_rows(int block_len, int cta_s) {
  int divisor = cta_s;
  for (int rest = block_len; rest != 0;) {
    const int next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  return divisor;
}

template <class T>
__device__ __forceinline__ PackedRows packed_rows(const TmaArguments<T>& arguments) {
  return {arguments.plan.packed_heads};
}

// Of the cache, where it consists of blocks.
template <class Traits>
__device__ __forceinline__ int block_len_of(const AttentionParams<typename Traits::T>& params) {
  return Traits::Config::kCache == CacheType::kBlock ? params.block_iter_params.block_len
                                                     : params.paged_iter_params.block_len;
}

template <class Traits>
__device__ __forceinline__ KeySource key_source(const AttentionParams<typename Traits::T>& params) {
  if constexpr (Traits::Config::kCache == CacheType::kLinear) {
    return KeySource::kTokenBoxes;
  } else {
    return block_len_of<Traits>(params) % Traits::kLeastBoxRows == 0 ? KeySource::kBlockBoxes
                                                                     : KeySource::kGathered;
  }
}

// Producer warps that load K and V.
template <class Traits>
__device__ __forceinline__ int loader_warps(const AttentionParams<typename Traits::T>& params) {
  switch (key_source<Traits>(params)) {
    case KeySource::kTokenBoxes:
      return 1;
    case KeySource::kGathered:
      // Of rows themselves, one looks up addresses.
      return Traits::Kv::kIsQuantised ? 1 : 1 + Traits::kCopyWarps;
    default:
      if constexpr (Traits::Kv::kIsQuantised) {
        return 1;  // the others bring pairs
      }
      const int rows = box_rows(block_len_of<Traits>(params), Traits::kCtaS);
      return Traits::kCtaS <= Traits::kBoxesOfOneWarp * rows ? 1 : Traits::kBoxWarps;
  }
}

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
  WorkItem items[Traits::kQuerySlots > 1 ? Traits::kQuerySlots : 2][kRowGroups];
};

}  // namespace attn::sm90
