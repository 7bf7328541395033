// SPDX-License-Identifier: Apache-2.0
// How a decode call is cut: row tiles, CTAs, workspace, counters. Pure, like attn/plan.h.
// attn_runtime/decode_plan.py is the twin: same names, integers and messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "attn/choose.h"
#include "attn/plan.h"

namespace attn {

// Up to this many bytes of K and V for each SM, tiles of one length are cut at their ends (measured
// on an H200: 8 x 1k and 32 x 1k gain 7 to 10 %; with more work, idle CTAs cost more than splits).
inline constexpr std::int64_t kAlignedBytes = std::int64_t{4} << 20;

// Up to this many bytes of K and V, L2 need not keep them (measured on an H200: 1 to 4 % faster;
// beyond, slower where L2 is full of lines to be written back).
inline constexpr std::int64_t kStreamedBytes = std::int64_t{256} << 20;

// Ranges come in as many rounds of CTAs as fill the device to 95 %, at most this many.
inline constexpr int kMostRounds = 4;

// Sequences of a plain call: one to a lane of a warp.
inline constexpr int kMostPlainSequences = 32;

// Rows of the narrowest tile.
inline constexpr int kFewestRows = 8;

// Whole splits are shared out over at most as many rounds of CTAs, so that uneven ones balance.
inline constexpr int kMostPieceRounds = 16;

// A round of CTAs begins only where each finds as many stages: the start of a CTA, which nothing
// hides, costs as much as a few (measured on an H200: splits of 256 keys are 15 % faster than with
// 16 rounds, of 512 keys 3 %).
inline constexpr std::int64_t kFewestPieceStages = 64;

// Stages of a range in a cluster of more than two CTAs, which the device places less evenly
// (measured on an H100 with 8 KV heads: 4 x 1k gains 7 %, 4 x 2k loses 1 % and 4 x 16k 3 %).
inline constexpr std::int64_t kMostClusteredStages = 6;

// Stages by which ranges in clusters may exceed an equal share (measured on an H100: 1 x 3k gains
// 8 % with 6 stages for 3, 1 x 4k nothing with 8 for 4).
inline constexpr std::int64_t kLongerStages = 3;

// Threads of a CTA whose warps, four of them, hide each other's latency.
inline constexpr int kFullThreads = 128;

namespace detail {

inline constexpr std::int64_t kMaxInt = std::numeric_limits<int>::max();

// The rows of a group that a CTA packs: `tokens` query tokens of `heads` heads.
struct RowTiles {
  int heads;
  int tokens;
  std::int64_t head_tiles;
  std::int64_t query_tiles;  // of the longest sequence
};

// Wide groups are cut into tiles of about equal width. A sequence is never longer than max_q_len,
// so the tiles of a sequence do not depend on that bound.
inline RowTiles row_tiles(const Problem& problem, int rows) {
  const std::int64_t group = problem.num_heads / problem.num_kv_heads;
  const std::int64_t longest = std::min(problem.max_q_len, problem.token_num);
  RowTiles tiles;
  tiles.heads = static_cast<int>(ceil_div(group, ceil_div(group, rows)));
  const std::int64_t tokens = std::max<std::int64_t>(rows / group, 1);
  tiles.tokens = static_cast<int>(std::min(tokens, std::max<std::int64_t>(longest, 1)));
  tiles.head_tiles = ceil_div(group, tiles.heads);
  tiles.query_tiles = ceil_div(longest, tiles.tokens);
  return tiles;
}

// Ranges of each of `columns` columns: as many as fill the device, in the fewest rounds that leave
// at most 5 % of it idle.
inline std::int64_t ranges_to_fill(std::int64_t capacity, std::int64_t columns) {
  std::int64_t best = 1;
  std::int64_t best_rounds = std::max<std::int64_t>(ceil_div(columns, capacity), 1);
  for (std::int64_t rounds = 1; rounds <= kMostRounds; ++rounds) {
    const std::int64_t ranges = capacity * rounds / columns;
    if (ranges > 0 && ranges * best_rounds > best * rounds) {
      best = ranges;
      best_rounds = rounds;
    }
    if (ranges > 0 && 20 * ranges * columns >= 19 * capacity * rounds) {
      return ranges;
    }
  }
  return best;
}

inline std::int64_t bounded(std::int64_t value, std::int64_t most) {
  return std::max<std::int64_t>(std::min(value, most), 1);
}

// Two places for parts of each CTA, of row_slots rows: partial_O float [2 ctas, row_slots,
// head_dim_v], then, from the next multiple of 256 bytes, partial_ML float [2 ctas, row_slots, 2].
// `ctas` are those of the widest grid that other batches and lengths may take.
inline void set_range_workspace(const Problem& problem,
                                const KernelLimits& kernel,
                                std::int64_t ctas,
                                Plan& plan) {
  const std::int64_t rows = 2 * ctas * plan.ranges.row_slots;
  plan.partial_O_bytes = multiply_bytes(rows, std::int64_t{4} * problem.head_dim_v);
  plan.partial_ML_offset = align_bytes(plan.partial_O_bytes);
  plan.workspace_bytes = add_bytes(plan.partial_ML_offset, multiply_bytes(rows, 8));
  const std::int64_t counters = ctas * (kernel.threads / 32);
  if (std::max(counters, rows) > kMaxInt) {
    refuse("num_heads", "num_heads takes more than 2^31 parts of rows: turn splitting off");
  }
  plan.counter_cnt = static_cast<int>(counters);
}

// CTAs of an SM that stages are shared out to. Few sequences take one where two fit: half the
// splits are put together, and the CTAs of the next launch find room beside them (measured on an
// H200 with 8 KV heads: 1 x 4k 7 % faster, 16 x 1k 7 %, 8 x 16k 2 %; 32 x 1k 1 % slower).
inline int ctas_of_heuristic(const Problem& problem,
                             const DeviceLimits& device,
                             const KernelLimits& kernel,
                             const RowTiles& tiles) {
  const std::int64_t sms_of_a_tile = kernel.cta_q == kFewestRows ? 1 : 16;
  const std::int64_t sequence_tiles = problem.num_kv_heads * tiles.head_tiles;
  const bool few = sms_of_a_tile * problem.batch_size * sequence_tiles <= device.sm_count;
  return few && kernel.ctas_per_sm == 2 ? 1 : kernel.ctas_per_sm;
}

// CTAs of a cluster, a power of two: each sequence has so many ranges, whose parts then meet in
// shared memory. 1: there are no clusters, as where ranges would get too long. Half of the CTAs of
// one sequence find room in clusters of 8, beside those of the next launch; others do not.
inline int cluster_of_heuristic(const Problem& problem,
                                const KernelLimits& kernel,
                                const RowTiles& tiles,
                                std::int64_t stages,
                                std::int64_t ranges) {
  const bool is_plain = problem.window_size == 0 && problem.cp_size == 1 && tiles.query_tiles == 1;
  if (!is_plain || tiles.head_tiles > 1 || tiles.tokens > 1) {
    return 1;
  }
  const std::int64_t batch = problem.batch_size;
  const std::int64_t most = batch == 1 ? kernel.cluster_ctas : kernel.cluster_ctas / 2;
  int cluster = 1;
  while (2 * cluster <= std::min(ranges / batch, most)) {
    cluster *= 2;
  }
  const std::int64_t longest = ceil_div(stages, cluster);
  const std::int64_t share = ceil_div(batch * stages, ranges);
  const bool is_short = longest <= kMostClusteredStages || cluster <= 2;
  return is_short && longest <= share + kLongerStages ? cluster : 1;
}

// Query tokens of a sequence of average length, rounded up.
inline std::int64_t mean_tokens(const Problem& problem) {
  const std::int64_t mean = ceil_div(problem.token_num, std::max(problem.batch_size, 1));
  return bounded(mean, problem.max_q_len);
}

// How far a tile is from the least that holds so many rows.
inline std::int64_t misfit(int cta_q, std::int64_t rows) {
  return cta_q >= rows ? cta_q - rows : rows - cta_q + kMaxInt;
}

}  // namespace detail

// Plans one decode call, of a kernel that packs kernel.cta_q rows and has stages of kernel.cta_s
// keys. Throws Error(kInvalidArgument) as plan() does.
//
// heuristic: equal ranges of stages, which the kernel reduces itself; its workspace and counters
// are those of the widest grid that other batches and lengths may take. fixed, fixed_size, off:
// whole splits as in prefill, and the reduction after it. A heuristic that may not split is off.
inline Plan plan_decode(const Problem& problem,
                        const DeviceLimits& device,
                        const KernelLimits& kernel,
                        const SplitPolicy& policy) {
  detail::check(problem, device, kernel, policy);
  const detail::RowTiles tiles = detail::row_tiles(problem, kernel.cta_q);
  KernelLimits tile = kernel;  // of query tokens, as the planner of splits has it
  tile.cta_q = tiles.tokens;

  Plan result;
  result.cta_q = tiles.tokens;
  result.cta_s = kernel.cta_s;
  result.threads = kernel.threads;
  result.shared_bytes = kernel.shared_bytes;
  const std::int64_t split_tiles =
      policy.kind == SplitKind::kFixedSize ? detail::ceil_div(policy.value, kernel.cta_s) : 0;
  result.split_tiles = static_cast<int>(split_tiles);
  if (problem.batch_size == 0 || tiles.query_tiles == 0) {
    return result;
  }
  const std::int64_t columns = problem.num_kv_heads * tiles.head_tiles;
  const std::int64_t most_columns = columns * tiles.query_tiles;
  detail::check_grid(
      most_columns, device, "max_q_len", "give a smaller bound, or take a prefill kernel");
  const std::int64_t capacity = std::int64_t{device.sm_count} * kernel.ctas_per_sm;
  const bool shares_stages = policy.kind == SplitKind::kHeuristic && policy.max_split_k != 1;

  const std::int64_t span = detail::key_span(problem, tiles.tokens);
  const std::int64_t stages = detail::pieces_of_span(problem, span, kernel.cta_s);
  const std::int64_t splits =
      shares_stages ? 1 : detail::split_bound(problem, device, tile, policy, split_tiles);
  const std::int64_t units = problem.batch_size * (shares_stages ? stages : splits);
  if (units > detail::kMaxInt) {
    detail::refuse("max_k_len",
                   "max_k_len is " + std::to_string(problem.max_k_len) + ": the keys of " +
                       std::to_string(problem.batch_size) +
                       " sequences are more than 2^31 pieces; give a smaller bound, send fewer "
                       "sequences, or split less");
  }
  const int ctas_per_sm = detail::ctas_of_heuristic(problem, device, kernel, tiles);
  std::int64_t ranges;
  std::int64_t widest = 0;
  if (shares_stages) {
    const std::int64_t cap = policy.max_split_k > 0 ? policy.max_split_k : detail::kMaxInt;
    const std::int64_t filling = std::int64_t{device.sm_count} * ctas_per_sm;
    ranges = std::min(detail::ranges_to_fill(filling, columns), cap);
    widest = std::min(std::max(ranges, detail::ranges_to_fill(capacity, columns)), cap);
    ranges = detail::bounded(ranges, units * tiles.query_tiles);
    if (kernel.cluster_ctas > 1 && ctas_per_sm == 1) {
      result.cluster = detail::cluster_of_heuristic(problem, kernel, tiles, stages, ranges);
      ranges = result.cluster == 1 ? ranges : std::int64_t{problem.batch_size} * result.cluster;
    }
  } else {
    const std::int64_t filling =
        detail::ceil_div(units * detail::ceil_div(stages, splits), kFewestPieceStages);
    ranges = std::min(filling, kMostPieceRounds * capacity / columns);
    ranges = detail::bounded(units, std::max(ranges, capacity / columns));
  }
  const std::int64_t ctas = std::max(ranges * columns, most_columns);
  detail::check_grid(ctas, device, "num_heads", "split less, or send fewer heads at a time");

  result.q_tiles = static_cast<int>(tiles.query_tiles);
  result.split_cnt = static_cast<int>(splits);
  result.grid_x = static_cast<int>(ctas);
  result.ranges.ctas = static_cast<int>(ctas);
  result.ranges.columns = static_cast<int>(columns);
  result.ranges.ranges = static_cast<int>(ctas / columns);
  result.ranges.group = problem.num_heads / problem.num_kv_heads;
  result.ranges.row_heads = tiles.heads;
  result.ranges.head_tiles = static_cast<int>(tiles.head_tiles);
  result.ranges.row_slots = tiles.heads * tiles.tokens;
  result.ranges.pieces = shares_stages ? 0 : 1;
  if (!shares_stages) {
    detail::set_workspace(problem, device, splits, result);
    return result;
  }
  const std::int64_t stage_bytes = std::int64_t{4} * kernel.cta_s * problem.head_dim_v;
  result.ranges.aligned_units =
      static_cast<int>(std::min(kAlignedBytes / (stage_bytes * ctas_per_sm), detail::kMaxInt));
  result.ranges.streamed_units = static_cast<int>(
      std::min(kStreamedBytes / (stage_bytes * problem.num_kv_heads), detail::kMaxInt));
  if (ranges > 1) {
    const std::int64_t most_ctas = std::max(widest * columns, most_columns);
    detail::set_range_workspace(problem, kernel, most_ctas, result);
  }
  if (problem.cp_size > 1) {
    detail::set_parts(problem, device, result);
  }
  return result;
}

// Of the tiles of a decode kernel the one of least rank takes a call. A rank of kUnfit: the
// device cannot run it.
//
// It is the least that holds the rows of a sequence of average length, so that K and V are read
// once; of those the one with more warps, which hide each other's latency. Policy kFixedSize takes
// the rows of one token, so that no bound changes a bit.
inline std::int64_t rank_decode(const Problem& problem,
                                const DeviceLimits& device,
                                const KernelLimits& kernel,
                                const SplitPolicy& policy) {
  detail::check(problem, device, kernel, policy);
  if (kernel.shared_bytes > device.shared_per_cta) {
    return detail::kUnfit;
  }
  const std::int64_t tokens =
      policy.kind == SplitKind::kFixedSize ? 1 : detail::mean_tokens(problem);
  const std::int64_t rows = problem.num_heads / problem.num_kv_heads * tokens;
  return 2 * detail::misfit(kernel.cta_q, rows) + (kernel.threads < kFullThreads ? 1 : 0);
}

}  // namespace attn
