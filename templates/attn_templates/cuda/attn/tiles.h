// SPDX-License-Identifier: Apache-2.0
// The tiles of a call: rows of queries that a CTA takes, and the keys that they see. Bounds of
// lengths are all that is known. attn_runtime/tiles.py is the twin: same names and integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "attn/cost.h"
#include "attn/limits.h"
#include "attn/problem.h"

namespace attn {

// A call as its tiles see it: a pack of heads is one head, a tile has cta_q tokens.
struct PackedCall {
  Problem problem;
  KernelLimits kernel;
};

// A token has so many rows at most, where some of them are nobody's.
inline constexpr int kMostPaddedHeads = 16;

namespace detail {

// Rows of a token whose heads, a whole group, are padded to a power of two; 0 where a tile has not
// the room for the longest queries, or the caller has said how keys are split.
inline int padded_heads(const Problem& problem,
                        const KernelLimits& kernel,
                        const SplitPolicy& policy) {
  const bool may_choose = policy.kind == SplitKind::kHeuristic ||
                          (policy.kind == SplitKind::kOff && policy.max_split_k == 1);
  const std::int64_t longest = std::min(problem.max_q_len, problem.token_num);
  const int group = problem.num_heads / problem.num_kv_heads;
  int heads = 1;
  while (heads < group && heads < kMostPaddedHeads) {
    heads *= 2;
  }
  const bool fits = group <= heads && heads <= kernel.packed_heads && problem.causal &&
                    longest * heads <= kernel.cta_q;
  return may_choose && fits ? heads : 0;
}

}  // namespace detail

// As many heads of a group are packed as the kernel can and as divide the group: they read the same
// keys, so short queries fill a tile, and no row of a long one is worse off. The bits of a row
// depend on it, so it depends on nothing that a batch or a bound of lengths changes; but where the
// planner may choose, and all queries of a sequence fit into one tile so, the whole group is
// packed. Splits are merged by clusters where it may choose, too, and there is no part to leave.
inline PackedCall pack_heads(const Problem& problem,
                             const KernelLimits& kernel,
                             const SplitPolicy& policy) {
  const int group = problem.num_heads / problem.num_kv_heads;
  const int padded = detail::padded_heads(problem, kernel, policy);
  const int heads = padded > 0 ? group : std::gcd(group, kernel.packed_heads);
  const int rows = std::max(padded, heads);
  PackedCall packed{problem, kernel};
  packed.problem.num_heads /= heads;
  packed.kernel.cta_q /= rows;
  packed.kernel.packed_heads = rows;
  if (policy.kind != SplitKind::kHeuristic || problem.cp_size > 1) {
    packed.kernel.merged_splits = 1;
  }
  return packed;
}

namespace detail {

struct QTiles {
  std::int64_t count;
  std::int64_t per_sequence;
};

// Tiles of cta_q rows never span two sequences. Two grids have room for every mixture of lengths:
//
//   by the longest:   batch_size * ceil(max_q_len / cta_q)
//   by the tokens:    floor((token_num + batch_size (cta_q - 1)) / cta_q)
//
// and the smaller one is taken; on a tie the first, which finds its sequence without a search.
inline QTiles q_tiles(const Problem& problem, int cta_q) {
  const std::int64_t batch = problem.batch_size;
  const std::int64_t longest = std::min(problem.max_q_len, problem.token_num);
  const std::int64_t per_sequence = ceil_div(longest, cta_q);
  const std::int64_t by_longest = batch * per_sequence;
  const std::int64_t by_tokens = (problem.token_num + batch * (cta_q - 1)) / cta_q;
  if (by_longest <= by_tokens) {
    return {by_longest, batch == 0 ? 0 : per_sequence};
  }
  return {by_tokens, 0};
}

// Most keys of a sequence that one rank has (attn/key_range.cuh says which). For length L, n ranks
// and chunks of c keys:
//
//   interleaved   floor(L / (c n)) c + min(L mod (c n), c)     rank 0 has the most
//   contiguous    ceil(L / n)
//   zig-zag       min(L, 2 ceil(L / (2 n)))
inline std::int64_t local_keys(const Problem& problem) {
  const std::int64_t length = problem.max_k_len;
  const std::int64_t ranks = problem.cp_size;
  const std::int64_t chunk = problem.cp_chunk;
  switch (problem.cp_sharding) {
    case KeySharding::kInterleaved:
      return length / (chunk * ranks) * chunk + std::min(length % (chunk * ranks), chunk);
    case KeySharding::kContiguous:
      return ceil_div(length, ranks);
    case KeySharding::kZigZag:
      break;
  }
  return std::min(length, 2 * ceil_div(length, 2 * ranks));
}

// Most keys that one query tile sees. Its rows stand at cta_q consecutive positions, and the row at
// position p sees
//
//   causal, window w:   p - w < j <= p       w + cta_q - 1 keys together
//   full, window w:     p - w < j < p + w    2 w + cta_q - 2
inline std::int64_t key_span(const Problem& problem, int cta_q) {
  const std::int64_t window = problem.window_size;
  if (window == 0) {
    return local_keys(problem);
  }
  const std::int64_t seen = problem.causal ? window + cta_q - 1 : 2 * window + cta_q - 2;
  return std::min(local_keys(problem), seen);
}

// Pieces of `size` keys, counted from key 0, that `span` consecutive keys touch when they may start
// anywhere: floor((span + size - 2) / size) + 1, and never more than there are.
inline std::int64_t pieces_of_span(const Problem& problem, std::int64_t span, std::int64_t size) {
  if (span == 0) {
    return 0;
  }
  return std::min((span + size - 2) / size + 1, ceil_div(local_keys(problem), size));
}

// Columns of tiles: the heads of each sequence, or of all (attn/cta_map.cuh).
inline std::int64_t columns_of(const Problem& problem, const QTiles& tiles) {
  const std::int64_t heads = problem.num_heads;
  return tiles.per_sequence > 0 ? heads * problem.batch_size : heads;
}

// Heads, of one sequence or of all (attn/cta_map.cuh, sm90/tile_order.cuh), whose tiles are
// computed together. Their K and V stay in L2, where tile after tile finds them: without a mask the
// heads of one group, under a causal mask, where the longest tiles of a section come first, as many
// as have K and V in 8 MiB. K is taken to be as wide as V.
//
// CTAs that take one tile after another end together by themselves; under a causal mask they get 16
// heads at least, so that few of them share one (measured on H100 and H200). One CTA for each tile
// ends when its tile does: there a section has three tiles for every two CTAs at least, so that the
// last one ends evenly, and sections are as even as can be.
inline std::int64_t section_of(const Problem& problem,
                               const DeviceLimits& device,
                               const KernelLimits& kernel,
                               const QTiles& tiles) {
  constexpr std::int64_t kSectionBytes = 8 << 20;
  constexpr std::int64_t kLeastHeads = 16;
  const bool is_equal = tiles.per_sequence > 0;
  const std::int64_t heads = problem.num_heads;
  const std::int64_t columns = columns_of(problem, tiles);
  const std::int64_t rows = is_equal ? tiles.per_sequence : tiles.count;
  const bool takes_tiles = kernel.tile_counters > 0;
  std::int64_t section = heads / problem.num_kv_heads;
  if (problem.causal) {
    const std::int64_t token_bytes = std::int64_t{4} * problem.head_dim_v;
    const std::int64_t keys = std::max<std::int64_t>(local_keys(problem), 1);
    const std::int64_t least = takes_tiles ? kLeastHeads / kernel.packed_heads
                                           : ceil_div(3 * slots_of(device, kernel), 2 * rows);
    section = std::max(section * (kSectionBytes / token_bytes / keys), least);
  }
  section = std::max<std::int64_t>(section, 1);
  if (takes_tiles) {
    return std::min(section, columns);
  }
  return ceil_div(columns, std::max<std::int64_t>(columns / section, 1));
}

}  // namespace detail

}  // namespace attn
