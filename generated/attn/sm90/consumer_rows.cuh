// SPDX-License-Identifier: Apache-2.0
// The rows of a consumer within its item: which queries they are, what those see, where the output
// goes.
#pragma once

#include "attn/sm90/mask.cuh"
#include "attn/sm90/output.cuh"
#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/warps.cuh"
#include "attn/sm90/work.cuh"

namespace attn::sm90 {

template <class Traits>
class ConsumerRows {
  using T = typename Traits::T;

 public:
  __device__ __forceinline__ ConsumerRows(const Arguments<T>& arguments,
                                          const WorkItem& item,
                                          int row_group,
                                          WarpgroupThread thread)
      : arguments_(arguments),
        item_(item),
        first_(row_group * Traits::kConsumerRows),
        thread_(thread) {}

  // --- of a warp -------------------------------------------------------------------------------

  __device__ __forceinline__ OutputRows output() const {
    const int row = first_ + thread_.warp() * Traits::kWarpRows;
    return {item_.first_token + packed_rows(arguments_).token(row),
            item_.head + packed_rows(arguments_).head(row),
            warp_uniform(rows_from(row)),
            warp_uniform(item_.split)};
  }

  // Splits of the tile that have keys.
  __device__ __forceinline__ int splits() const {
    const int last_query = min(item_.first_query + arguments_.plan.cta_q, item_.q_len) - 1;
    const TileRange whole = tiles_of(visible().any(item_.first_query, last_query), Traits::kCtaS);
    return split_count(whole.begin, whole.end, arguments_.plan);
  }

  // --- of a thread: two rows, 8 apart ----------------------------------------------------------

  __device__ __forceinline__ bool exists(int h) const { return rows_from(row(h)) > 0; }

  // The columns of a block up to which, and from which on, the rows see its keys.
  __device__ __forceinline__ ColumnLimits ends_in(int block) const {
    const int first_key = block * Traits::kCtaS;
    ColumnLimits ends = column_ends(visible(), queries(), first_key, thread_.lane());
    if constexpr (Traits::kKeyGroups > 1) {
      const int own = item_.end_key - first_key - thread_.lane() % 4 * 2;
      ends = {{min(ends.limit[0], own), min(ends.limit[1], own)}};
    }
    return ends;
  }
  __device__ __forceinline__ ColumnLimits begins_in(int block) const {
    return column_begins(visible(), queries(), block * Traits::kCtaS, thread_.lane());
  }

 private:
  __device__ __forceinline__ VisibleKeys visible() const {
    return visible_keys_of<Traits>(item_, arguments_.params);
  }

  __device__ __forceinline__ int row(int h) const {
    return first_ + thread_.warp() * Traits::kWarpRows + thread_.lane() / 4 + 8 * h;
  }

  __device__ __forceinline__ QueryPair queries() const {
    return {{query_of(row(0)), query_of(row(1))}};
  }

  // The query of a row of the tile.
  __device__ __forceinline__ int query_of(int row) const {
    return item_.first_query + packed_rows(arguments_).token(row);
  }

  // Rows of the tile that exist, from a row on.
  __device__ __forceinline__ int rows_from(int row) const {
    const int tokens = min(item_.q_len - item_.first_query, Traits::kCtaQ);
    return packed_rows(arguments_).rows(tokens) - row;
  }

  const Arguments<T>& arguments_;
  const WorkItem& item_;
  const int first_;  // of the rows, within the tile
  const WarpgroupThread thread_;
};

}  // namespace attn::sm90
