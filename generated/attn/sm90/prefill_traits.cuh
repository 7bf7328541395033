// SPDX-License-Identifier: Apache-2.0
// The shapes of a prefill kernel, derived from its configuration and tile.
#pragma once

#include "attn/cache_iterator.cuh"
#include "attn/config.h"
#include "attn/sm90/register_budget.cuh"
#include "attn/sm90/softmax_form.h"

namespace attn::sm90 {

// How the output leaves the registers of a consumer.
enum class OutputRoute : int {
  kThroughQuery,    // through its own rows of Q, which nobody reads any more (Q has two slots)
  kThroughStaging,  // through 16 rows per warp of half the panels, in two turns (Q has one slot)
};

// Blocks of K, and of V, that the loader has in flight: over a quantised cache, of codes.
template <class Tile, bool kIsQuantised>
constexpr int loaded_stages() {
  if constexpr (kIsQuantised) {
    return Tile::kCodeStages;
  } else {
    return Tile::kStages;
  }
}

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
  static constexpr RegisterBudget kRegisters =
      register_budget(Kv::kIsQuantised, kPanels, kConsumers, Tile::kCtasPerSm);
  static_assert(kRegisters.sum(kConsumers) <= kLaunchRegisters * kWarpgroups,
                "the producers give back as many registers as the consumers take");

  // A product of 256 columns needs more registers than a thread of so many is launched with.
  static constexpr bool kHalvesOutput = kOutputColumns > 192 && kThreads > 384;

  // What the loader brings: K and V themselves, or blocks of their codes, in panels of as many
  // bytes.
  static constexpr int kLoadedStages = loaded_stages<Tile, Kv::kIsQuantised>();
  static constexpr int kCodePanels = (Kv::template kRowBytes<kHeadDim> + 127) / 128;
  static constexpr int kLoadedPanels = Kv::kIsQuantised ? kCodePanels : kPanels;
  static constexpr int kLoadedPanelsV = Kv::kIsQuantised ? kCodePanels : kPanelsV;

  // Slots of K and V hold what was loaded until they are filled again, and tiles in turn may share
  // it. (Codes become elements, and shared keys go round the consumers.)
  static constexpr bool kKeepsKeys = !Kv::kIsQuantised && kKeyGroups == 1;

  // The splits of a tile may be the CTAs of a cluster, which merge them (split_exchange.cuh).
  static constexpr int kMergedSplits = Tile::kMergedSplits;
  static constexpr bool kMergesSplits = kMergedSplits > 1;

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

}  // namespace attn::sm90
