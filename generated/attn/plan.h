// SPDX-License-Identifier: Apache-2.0
// How a call is cut into CTAs: tiles of query rows, splits of keys, workspace. Pure: no device is
// asked, and lengths are known by their bounds only, so that a captured launch stays right when
// lengths change within them. attn_runtime/plan.py is the twin: same names, integers and messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>

#include "attn/cost.h"
#include "attn/error.h"
#include "attn/limits.h"
#include "attn/params.h"

namespace attn {

// What is asked. Lengths are upper bounds: a larger one gives the same result.
struct Problem {
  int token_num = 0;
  int batch_size = 0;
  int max_q_len = 0;
  int max_k_len = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim_v = 0;
  int window_size = 0;  // 0: none
  bool causal = true;
  int cp_rank = 0;
  int cp_size = 1;  // ranks that the keys of each sequence are spread over
  KeySharding cp_sharding = KeySharding::kInterleaved;
  int cp_chunk = 1;  // kInterleaved: consecutive keys that go to one rank
  CpForm cp_form = CpForm::kScaled;
};

enum class SplitKind : int { kHeuristic = 0, kFixed = 1, kFixedSize = 2, kOff = 3 };

// How the keys of a query tile are split.
struct SplitPolicy {
  SplitKind kind = SplitKind::kHeuristic;
  int value = 0;        // kFixed: splits; kFixedSize: keys of a split
  int max_split_k = 0;  // splits that the workspace holds; 0: no bound
};

struct Plan {
  int q_tiles = 0;             // tiles of one head, or pack of heads, that the grid has room for
  int tiles_per_sequence = 0;  // of each sequence; 0: found from cu_q_len by search
  int split_cnt = 1;           // no query tile has more splits
  int split_tiles = 0;         // 0: equal splits; n: chunks of n key tiles
  int cta_q = 0;               // query tokens of a tile
  int cta_s = 0;
  int packed_heads = 1;  // query heads of a group that share a tile
  int grid_x = 0;        // 0: nothing to launch
  int threads = 0;
  int shared_bytes = 0;
  std::int64_t partial_O_bytes = 0;
  std::int64_t partial_ML_offset = 0;  // bytes from the start of the workspace
  std::int64_t cp_O_offset = 0;        // of this rank's part, where keys are spread over ranks
  std::int64_t cp_ML_offset = 0;
  std::int64_t cp_stride = 0;        // floats from a rank's part to the next
  std::int64_t workspace_bytes = 0;  // 0: no reduction
  int reduce_grid_x = 0;
  RangePlan ranges;     // decode: which CTA computes what
  int counter_cnt = 0;  // decode: ints that AttentionParams::counters must hold
};

// One warp reduces one row, four rows to a CTA of 128 threads.
inline constexpr int kReduceRowsPerCta = 4;
inline constexpr int kWorkspaceAlignment = 256;  // bytes

inline constexpr int kMaxSplits = 1 << 16;  // of equal ones: their products stay below 2^32
inline constexpr int kMaxHeuristicSplits = 128;
// Tiles for so many waves leave too little of the device idle for splits to win.
inline constexpr int kFullWaves = 8;

namespace detail {

inline constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max();
inline constexpr std::int64_t kMaxKeys = std::numeric_limits<int>::max();

[[noreturn]] inline void refuse(const char* field, const std::string& message) {
  throw Error(Status::kInvalidArgument, field, message);
}

inline void need_at_least(const char* field, std::int64_t value, std::int64_t least) {
  if (value < least) {
    refuse(field,
           std::string(field) + " is " + std::to_string(value) + ": it must be at least " +
               std::to_string(least));
  }
}

inline void need_cost(const char* field, std::int64_t value) {
  need_at_least(field, value, 0);
  if (value > kCostMax) {
    refuse(field,
           std::string(field) + " is " + std::to_string(value) + ": it must be at most " +
               std::to_string(kCostMax));
  }
}

// a * b for a, b >= 0, refused when it does not fit 64 bits.
inline std::int64_t multiply_bytes(std::int64_t a, std::int64_t b) {
  if (b != 0 && a > kMaxBytes / b) {
    refuse("token_num", "the split workspace exceeds 2^63 bytes: split less, or send fewer tokens");
  }
  return a * b;
}

inline void check(const Problem& problem) {
  need_at_least("token_num", problem.token_num, 0);
  need_at_least("batch_size", problem.batch_size, 0);
  need_at_least("max_q_len", problem.max_q_len, 0);
  need_at_least("max_k_len", problem.max_k_len, 0);
  need_at_least("num_heads", problem.num_heads, 1);
  need_at_least("num_kv_heads", problem.num_kv_heads, 1);
  need_at_least("head_dim_v", problem.head_dim_v, 1);
  need_at_least("window_size", problem.window_size, 0);
  need_at_least("cp_size", problem.cp_size, 1);
  need_at_least("cp_rank", problem.cp_rank, 0);
  need_at_least("cp_chunk", problem.cp_chunk, 1);
  if (problem.cp_rank >= problem.cp_size) {
    refuse("cp_rank",
           "cp_rank is " + std::to_string(problem.cp_rank) +
               ": ranks count from 0 to cp_size - 1, "
               "which is " +
               std::to_string(problem.cp_size - 1));
  }
  if (std::int64_t{problem.cp_chunk} * problem.cp_size > kMaxKeys) {
    refuse("cp_chunk",
           "cp_chunk is " + std::to_string(problem.cp_chunk) + ": times cp_size, which is " +
               std::to_string(problem.cp_size) + ", it must stay below 2^31");
  }
  if (problem.num_heads % problem.num_kv_heads != 0) {
    refuse("num_kv_heads",
           "num_kv_heads is " + std::to_string(problem.num_kv_heads) +
               ": it must divide num_heads, which is " + std::to_string(problem.num_heads));
  }
}

inline void check(const Problem& problem,
                  const DeviceLimits& device,
                  const KernelLimits& kernel,
                  const SplitPolicy& policy) {
  check(problem);
  need_at_least("sm_count", device.sm_count, 1);
  need_at_least("max_grid_x", device.max_grid_x, 1);
  need_at_least("cta_q", kernel.cta_q, 1);
  need_at_least("cta_s", kernel.cta_s, 1);
  need_at_least("ctas_per_sm", kernel.ctas_per_sm, 1);
  need_cost("tile_ns", kernel.tile_ns);
  need_cost("step_ns", kernel.step_ns);
  need_at_least("packed_heads", kernel.packed_heads, 1);
  if (kernel.cta_q % kernel.packed_heads != 0) {
    refuse("packed_heads",
           "packed_heads is " + std::to_string(kernel.packed_heads) +
               ": it must divide cta_q, which is " + std::to_string(kernel.cta_q));
  }
  need_at_least("max_split_k", policy.max_split_k, 0);
  if (policy.kind == SplitKind::kFixed) {
    need_at_least("split_cnt", policy.value, 1);
  }
  if (policy.kind == SplitKind::kFixedSize) {
    need_at_least("split_size", policy.value, 1);
  }
}

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

// What a packed call has to do if its sequences are equally long, as long as the bounds allow.
// Under a causal mask the first of the query tiles sees what lies before the queries and its own
// rows, the last one everything.
inline Work work_of(const Problem& problem, const KernelLimits& kernel) {
  const std::int64_t batch = problem.batch_size;
  const std::int64_t mean = ceil_div(problem.token_num, std::max<std::int64_t>(batch, 1));
  const std::int64_t q_len = std::min<std::int64_t>(mean, problem.max_q_len);
  std::int64_t tiles = batch * ceil_div(q_len, kernel.cta_q);
  tiles = std::min(tiles, q_tiles(problem, kernel.cta_q).count);
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
  return bounded(work);
}

// The count that is estimated fastest; of equals, the least. A count that does not shorten the
// longest split is passed over. With max_split_k set to the count found, the count is found again.
inline std::int64_t heuristic_splits(const Work& work,
                                     const DeviceLimits& device,
                                     const KernelLimits& kernel,
                                     int max_split_k) {
  if (work.tiles >= kFullWaves * slots_of(device, kernel)) {
    return 1;
  }
  std::int64_t most = std::min<std::int64_t>(work.longest, kMaxHeuristicSplits);
  if (max_split_k > 0) {
    most = std::min<std::int64_t>(most, max_split_k);
  }
  std::int64_t best = 1;
  std::int64_t least = estimate_ns(work, device, kernel, 1);
  for (std::int64_t splits = 2; splits <= most; ++splits) {
    if (ceil_div(work.longest, splits) < ceil_div(work.longest, splits - 1)) {
      const std::int64_t taken = estimate_ns(work, device, kernel, splits);
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
    bound = heuristic_splits(work_of(problem, kernel), device, kernel, policy.max_split_k);
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

inline void check_grid(std::int64_t ctas,
                       const DeviceLimits& device,
                       const char* field,
                       const char* next) {
  if (ctas > device.max_grid_x) {
    refuse(field,
           std::string(field) + " gives a grid of " + std::to_string(ctas) + " CTAs: at most " +
               std::to_string(device.max_grid_x) + " can be launched; " + next);
  }
}

inline std::int64_t add_bytes(std::int64_t a, std::int64_t b) {
  return a > kMaxBytes - b ? multiply_bytes(kMaxBytes, 2) : a + b;
}

// The next multiple of 256 bytes.
inline std::int64_t align_bytes(std::int64_t bytes) {
  return multiply_bytes(ceil_div(bytes, kWorkspaceAlignment), kWorkspaceAlignment);
}

// Where keys are spread over ranks, room for the parts of all behind what the workspace has so far.
inline void add_parts(const Problem& problem, std::int64_t rows, Plan& plan) {
  const std::int64_t begin = align_bytes(plan.workspace_bytes);
  const std::int64_t O_bytes = multiply_bytes(rows, std::int64_t{4} * problem.head_dim_v);
  const bool gathers_O = problem.cp_form != CpForm::kScaled;
  const std::int64_t part_bytes = add_bytes(gathers_O ? O_bytes : 0, 8 * rows);
  const std::int64_t own = add_bytes(begin, multiply_bytes(problem.cp_rank, part_bytes));
  const std::int64_t end = add_bytes(begin, multiply_bytes(problem.cp_size, part_bytes));
  plan.cp_stride = part_bytes / 4;
  plan.cp_ML_offset = gathers_O ? own + O_bytes : own;
  plan.cp_O_offset = gathers_O ? own : align_bytes(end);
  plan.workspace_bytes = gathers_O ? end : add_bytes(plan.cp_O_offset, O_bytes);
}

// Where anything may be split: partial_O float [split_cnt, rows, head_dim_v], then, from the next
// multiple of 256 bytes, partial_ML float [split_cnt, rows, 2]; a row is a head of a token. Where
// keys are spread over ranks, from the next multiple on:
//
//   kScaled               (max, sum) float [cp_size, rows, 2]; from the next multiple on, O float
//                         [rows, head_dim_v] of this rank alone
//   kComplete, kPartOnly  [cp_size] parts: O float [rows, head_dim_v], (max, sum) float [rows, 2]
inline void set_workspace(const Problem& problem, const DeviceLimits& device, Plan& plan) {
  if (plan.split_cnt == 1 && problem.cp_size == 1) {
    return;
  }
  const std::int64_t rows = std::int64_t{problem.token_num} * problem.num_heads;
  const std::int64_t reduce_ctas = ceil_div(rows, kReduceRowsPerCta);
  check_grid(reduce_ctas, device, "token_num", "send fewer tokens, or turn splitting off");
  plan.reduce_grid_x = static_cast<int>(reduce_ctas);
  if (plan.split_cnt > 1) {
    const std::int64_t rows_of_all_splits = multiply_bytes(rows, plan.split_cnt);
    plan.partial_O_bytes = multiply_bytes(rows_of_all_splits, std::int64_t{4} * problem.head_dim_v);
    plan.partial_ML_offset = align_bytes(plan.partial_O_bytes);
    plan.workspace_bytes = add_bytes(plan.partial_ML_offset, multiply_bytes(rows_of_all_splits, 8));
  }
  if (problem.cp_size > 1) {
    add_parts(problem, rows, plan);
  }
}

}  // namespace detail

// A call as its tiles see it: a pack of heads is one head, a tile has cta_q tokens.
struct PackedCall {
  Problem problem;
  KernelLimits kernel;
};

// As many heads of a group are packed as the kernel can and as divide the group: they read the same
// keys, so short queries fill a tile, and no row of a long one is worse off. The bits of a row
// depend on it, so it depends on nothing that a batch or a bound of lengths changes.
inline PackedCall pack_heads(const Problem& problem, const KernelLimits& kernel) {
  const int heads = std::gcd(problem.num_heads / problem.num_kv_heads, kernel.packed_heads);
  PackedCall packed{problem, kernel};
  packed.problem.num_heads /= heads;
  packed.kernel.cta_q /= heads;
  packed.kernel.packed_heads = heads;
  return packed;
}

// Plans one call. Throws Error(kInvalidArgument) that names the field: a value out of range, a
// split size that needs more splits than the workspace holds, or a grid that no device can launch.
// Nothing overflows silently.
inline Plan plan(const Problem& problem,
                 const DeviceLimits& device,
                 const KernelLimits& limits,
                 const SplitPolicy& policy) {
  detail::check(problem, device, limits, policy);
  const auto [packed, kernel] = pack_heads(problem, limits);

  Plan result;
  result.packed_heads = kernel.packed_heads;
  result.cta_q = kernel.cta_q;
  result.cta_s = kernel.cta_s;
  result.threads = kernel.threads;
  result.shared_bytes = kernel.shared_bytes;

  const detail::QTiles tiles = detail::q_tiles(packed, kernel.cta_q);
  const std::int64_t split_tiles =
      policy.kind == SplitKind::kFixedSize ? detail::ceil_div(policy.value, kernel.cta_s) : 0;
  result.split_tiles = static_cast<int>(split_tiles);
  if (tiles.count == 0) {
    return result;
  }
  const char* fewer = "send fewer tokens at a time";
  detail::check_grid(tiles.count, device, "token_num", fewer);
  detail::check_grid(tiles.count * packed.num_heads, device, "token_num", fewer);
  const std::int64_t splits = detail::split_bound(packed, device, kernel, policy, split_tiles);
  const char* request = policy.kind == SplitKind::kFixedSize ? "split_size" : "split_cnt";
  const std::int64_t grid = tiles.count * packed.num_heads * splits;
  detail::check_grid(grid, device, request, "split less, or send fewer tokens at a time");

  result.q_tiles = static_cast<int>(tiles.count);
  result.tiles_per_sequence = static_cast<int>(tiles.per_sequence);
  result.split_cnt = static_cast<int>(splits);
  result.grid_x = static_cast<int>(grid);
  detail::set_workspace(problem, device, result);
  return result;
}

// The split policy that AttentionParams asks for: a size, a count, never (max_split_k == 1), or the
// planner's choice.
inline SplitPolicy split_policy(int max_split_k, int split_cnt, int split_size) {
  detail::need_at_least("split_cnt", split_cnt, 0);
  detail::need_at_least("split_size", split_size, 0);
  if (split_cnt > 0 && split_size > 0) {
    detail::refuse("split_size",
                   "split_cnt is " + std::to_string(split_cnt) + " and split_size is " +
                       std::to_string(split_size) + ": set one of them, the other is 0");
  }
  if (split_size > 0) {
    return {SplitKind::kFixedSize, split_size, max_split_k};
  }
  if (max_split_k == 1) {
    return {SplitKind::kOff, 0, max_split_k};
  }
  if (split_cnt > 0) {
    return {SplitKind::kFixed, split_cnt, max_split_k};
  }
  return {SplitKind::kHeuristic, 0, max_split_k};
}

// The part of a plan that the kernels read.
inline TilePlan tile_plan(const Plan& plan) {
  TilePlan tiles;
  tiles.q_tiles = plan.q_tiles;
  tiles.tiles_per_sequence = plan.tiles_per_sequence;
  tiles.split_cnt = plan.split_cnt;
  tiles.split_tiles = plan.split_tiles;
  tiles.cta_q = plan.cta_q;
  tiles.cta_s = plan.cta_s;
  tiles.packed_heads = plan.packed_heads;
  return tiles;
}

}  // namespace attn
