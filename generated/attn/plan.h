// SPDX-License-Identifier: Apache-2.0
// How a call is cut into CTAs: tiles of query rows, splits of keys, workspace. Pure: no device is
// asked, and lengths are known by their bounds only, so that a captured launch stays right when
// lengths change within them. attn_runtime/plan.py is the twin: same names, integers and messages.
#pragma once

#include <cstdint>

#include "attn/cost.h"
#include "attn/limits.h"
#include "attn/params.h"
#include "attn/problem.h"
#include "attn/splits.h"
#include "attn/tiles.h"
#include "attn/workspace.h"

namespace attn {

// Where the parts lie in the workspace is of the plan.
struct Plan : Workspace {
  int q_tiles = 0;             // tiles of one head, or pack of heads, that the grid has room for
  int tiles_per_sequence = 0;  // of each sequence; 0: found from cu_q_len by search
  int split_cnt = 1;           // no query tile has more splits
  int split_tiles = 0;         // 0: equal splits; n: chunks of n key tiles
  int cta_q = 0;               // query tokens of a tile
  int cta_s = 0;
  int packed_heads = 1;  // rows of a token in a tile, of query heads of a group
  int section = 1;       // heads whose tiles are computed together
  int grid_x = 0;        // 0: nothing to launch
  int threads = 0;
  int shared_bytes = 0;
  RangePlan ranges;     // decode: which CTA computes what, or would
  int counter_cnt = 0;  // ints that AttentionParams::counters must hold
  int cluster = 1;      // CTAs in a row that are a cluster, and merge the splits of a tile, or,
                        // in a plain decode call, the parts of its rows
};

// Plans one call. Throws Error(kInvalidArgument) that names the field: a value out of range, a
// split size that needs more splits than the workspace holds, or a grid that no device can launch.
// Nothing overflows silently.
inline Plan plan(const Problem& problem,
                 const DeviceLimits& device,
                 const KernelLimits& limits,
                 const SplitPolicy& policy) {
  detail::check(problem, device, limits, policy);
  const auto [packed, kernel] = pack_heads(problem, limits, policy);

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
  result.section = static_cast<int>(detail::section_of(packed, device, kernel, tiles));
  result.grid_x = static_cast<int>(grid);
  result.counter_cnt = kernel.tile_counters;
  detail::set_workspace(problem, device, splits, result);
  if (detail::is_cluster(tiles.count * packed.num_heads, device, kernel, splits)) {
    result.cluster = static_cast<int>(splits);
    result.section = static_cast<int>(detail::columns_of(packed, tiles));
    result.reduce_grid_x = 0;
  }
  return result;
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
  tiles.section = plan.section;
  return tiles;
}

}  // namespace attn
