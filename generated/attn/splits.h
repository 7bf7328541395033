// SPDX-License-Identifier: Apache-2.0
// Into how many splits the keys of a query tile are cut. split.cuh has which keys those are.
// attn_runtime/splits.py is the twin: same names, integers and messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "attn/cost.h"
#include "attn/limits.h"
#include "attn/problem.h"
#include "attn/tiles.h"

namespace attn {

inline constexpr int kMaxSplits = 1 << 16;  // of equal ones: their products stay below 2^32
inline constexpr int kMaxHeuristicSplits = 128;
// Tiles for so many waves leave too little of the device idle for splits to win.
inline constexpr int kFullWaves = 8;

namespace detail {

// Of K and V that some query sees, each read once.
inline std::int64_t read_bytes_of(const Problem& problem) {
  const std::int64_t heads = std::int64_t{problem.batch_size} * problem.num_kv_heads;
  const std::int64_t span = key_span(problem, std::min(problem.max_q_len, problem.token_num));
  const std::int64_t keys = std::min(std::min(heads, kMostTiles) * span, kMostKeys);
  return keys * std::min<std::int64_t>(problem.key_bytes, kMostRowBytes);
}

// What a packed call has to do if its sequences are equally long, as long as the bounds allow.
// Under a causal mask the first of the query tiles sees what lies before the queries and its own
// rows, the last one everything.
inline Work work_of(const Problem& problem, const KernelLimits& kernel) {
  const std::int64_t batch = problem.batch_size;
  const std::int64_t mean = ceil_div(problem.token_num, std::max<std::int64_t>(batch, 1));
  const std::int64_t q_len = std::min<std::int64_t>(mean, problem.max_q_len);
  std::int64_t tiles = batch * ceil_div(q_len, kernel.cta_q);
  const std::int64_t room = q_tiles(problem, kernel.cta_q).count;
  tiles = std::min(tiles, room);
  const std::int64_t span = key_span(problem, kernel.cta_q);
  Work work;
  work.tiles = std::min(tiles, kMostTiles) * problem.num_heads;
  work.longest = work.shortest = pieces_of_span(problem, span, kernel.cta_s);
  if (problem.causal) {
    const std::int64_t before = local_keys(problem) - ceil_div(q_len, problem.cp_size);
    const std::int64_t seen = std::min(std::max<std::int64_t>(before, 0) + kernel.cta_q, span);
    work.shortest = std::min(ceil_div(seen, kernel.cta_s), work.longest);
  }
  work.rows = std::int64_t{problem.token_num} * problem.num_heads;
  work.row_bytes = 4 * (std::int64_t{problem.head_dim_v} + 2) * kernel.packed_heads;
  work.read_bytes = read_bytes_of(problem);
  work.grid = std::min(room, kMostTiles) * problem.num_heads;
  return bounded(work);
}

// What a packed call may have to do; the least comes last. Fewer tokens than batch_size max_q_len
// are of sequences whose queries differ in number, as their keys will. Of these only the bound is
// known, and it may be that of most sequences or of the one with the most queries, beside which the
// others are nothing.
struct Works {
  Work first;
  Work last;  // where there is one alone, it is also this
  bool is_mixed;
};

inline Works works_of(const Problem& problem, const KernelLimits& kernel) {
  const Work work = work_of(problem, kernel);
  const int most = std::min(problem.max_q_len, problem.token_num);
  if (problem.token_num >= std::int64_t{problem.batch_size} * most) {
    return {work, work, false};
  }
  Problem alone = problem;
  alone.batch_size = 1;
  alone.token_num = most;
  Works works{work, work_of(alone, kernel), true};
  works.first.is_mixed = true;
  works.last.rows = work.rows;
  works.last.grid = work.grid;
  return works;
}

// What a call is estimated to take, over all that it may have to do: each is as likely.
inline std::int64_t expected_ns(const Works& works,
                                const DeviceLimits& device,
                                const KernelLimits& kernel,
                                std::int64_t splits) {
  const std::int64_t first = estimate_ns(works.first, device, kernel, splits);
  return works.is_mixed ? first + estimate_ns(works.last, device, kernel, splits) : first;
}

// The count that is estimated fastest; of equals, the least. A count that does not shorten the
// longest split is passed over. With max_split_k set to the count found, the count is found again.
inline std::int64_t heuristic_splits(const Works& works,
                                     const DeviceLimits& device,
                                     const KernelLimits& kernel,
                                     int max_split_k) {
  if (works.last.tiles >= kFullWaves * slots_of(device, kernel)) {
    return 1;
  }
  const std::int64_t longest = works.first.longest;
  std::int64_t most = std::min<std::int64_t>(longest, kMaxHeuristicSplits);
  if (max_split_k > 0) {
    most = std::min<std::int64_t>(most, max_split_k);
  }
  std::int64_t best = 1;
  std::int64_t least = expected_ns(works, device, kernel, 1);
  for (std::int64_t splits = 2; splits <= most; ++splits) {
    if (ceil_div(longest, splits) < ceil_div(longest, splits - 1)) {
      const std::int64_t taken = expected_ns(works, device, kernel, splits);
      if (taken < least) {
        best = splits;
        least = taken;
      }
    }
  }
  return best;
}

// Upper bound of the splits of any query tile, at least 1, in any batch within the bounds.
inline std::int64_t split_bound(const Problem& problem,
                                const DeviceLimits& device,
                                const KernelLimits& kernel,
                                const SplitPolicy& policy,
                                std::int64_t split_tiles) {
  const std::int64_t span = key_span(problem, kernel.cta_q);
  const std::int64_t tiles = pieces_of_span(problem, span, kernel.cta_s);
  std::int64_t bound = 1;
  if (policy.kind == SplitKind::kHeuristic) {
    bound = heuristic_splits(works_of(problem, kernel), device, kernel, policy.max_split_k);
  } else if (policy.kind == SplitKind::kFixed) {
    bound = std::min({std::int64_t{policy.value}, tiles, std::int64_t{kMaxSplits}});
    if (policy.max_split_k > 0) {
      bound = std::min<std::int64_t>(bound, policy.max_split_k);
    }
  } else if (policy.kind == SplitKind::kFixedSize) {
    bound = pieces_of_span(problem, span, split_tiles * kernel.cta_s);
    if (policy.max_split_k > 0 && bound > policy.max_split_k) {
      refuse("max_split_k",
             "max_split_k is " + std::to_string(policy.max_split_k) + ", but split_size " +
                 std::to_string(policy.value) + " cuts a sequence of max_k_len " +
                 std::to_string(problem.max_k_len) + " into up to " + std::to_string(bound) +
                 " splits: give a larger workspace, a larger split_size or a smaller max_k_len");
    }
  }
  return std::max<std::int64_t>(bound, 1);
}

}  // namespace detail

}  // namespace attn
