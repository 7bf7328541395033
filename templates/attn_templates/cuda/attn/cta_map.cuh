// SPDX-License-Identifier: Apache-2.0
// From the index of a CTA to the query tile, head and split that it computes.
#pragma once

#include "attn/params.h"

namespace attn {

// The rows of one head that a CTA computes, and the length of their sequence.
struct QueryTile {
  int sequence;
  int head;
  int split;
  int first_query;  // within the sequence
  int rows;         // 0: nothing to do
  int first_token;  // row of q and out that holds first_query
  int q_len;
};

// The sequence that owns a slot of query tiles. Sequence b owns the slots from
//   start(b) = floor((cu_q_len[b] + b (cta_q - 1)) / cta_q) = b + floor((cu_q_len[b] - b) / cta_q)
// which leaves room for ceil(q_len / cta_q) tiles before start(b + 1), with no list and no scan.
// The owner is the last b with start(b) <= slot: a 32-way search, one probe per lane, one round for
// up to 32 sequences.
__device__ __forceinline__ int find_sequence(
    const int* cu_q_len, int batch_size, int cta_q, int slot, int& start) {
  const int lane = threadIdx.x % 32;
  int low = 0;
  int high = batch_size;
  start = 0;
  while (high - low > 1) {
    const int stride = (high - low + 31) / 32;
    const int probe = low + lane * stride;
    int probe_start = 0;
    if (probe < high) {
      const int rest = cu_q_len[probe] - probe;  // below 0 where sequences are empty
      const unsigned whole = static_cast<unsigned>(rest < 0 ? cta_q - 1 - rest : rest) / cta_q;
      probe_start = probe + static_cast<int>(rest < 0 ? 0u - whole : whole);
    }
    const bool reached = probe < high && probe_start <= slot;
    const int last = 31 - __clz(__ballot_sync(0xffffffffu, reached));  // lane 0 always reaches
    start = __shfl_sync(0xffffffffu, probe_start, last);
    low += last * stride;
    high = min(high, low + stride);
  }
  return low;
}

// A column is one head of one sequence (where the tiles of a sequence are found by search: of all
// sequences), a row is a query tile, the last of its sequence first, because under a causal mask it
// is the longest. CTAs are numbered row by row within a section of columns (attn/tiles.h), then by
// sections, then by splits.
template <class T>
__device__ __forceinline__ QueryTile
map_cta(const AttentionParams<T>& params, const TilePlan& plan, int cta_q, unsigned cta) {
  const bool is_equal = plan.tiles_per_sequence > 0;
  const unsigned columns = is_equal ? params.num_heads * params.batch_size : params.num_heads;
  const unsigned rows = is_equal ? plan.tiles_per_sequence : plan.q_tiles;

  QueryTile tile;
  tile.split = cta / (rows * columns);
  const unsigned of_split = cta - tile.split * rows * columns;
  const unsigned first_column = of_split / (rows * plan.section) * plan.section;
  const unsigned of_section = of_split - first_column * rows;
  const unsigned width = min(plan.section, columns - first_column);
  const unsigned row = of_section / width;
  const unsigned column = first_column + of_section - row * width;

  int order = row;  // 0 for the last tile of the sequence
  if (is_equal) {
    tile.sequence = column / params.num_heads;
    tile.head = column - tile.sequence * params.num_heads;
  } else {
    int start;
    tile.sequence = find_sequence(params.cu_q_len, params.batch_size, cta_q, row, start);
    tile.head = column;
    order -= start;
  }

  const int q_begin = params.cu_q_len[tile.sequence];
  tile.q_len = params.cu_q_len[tile.sequence + 1] - q_begin;
  tile.first_query = ((tile.q_len + cta_q - 1) / cta_q - 1 - order) * cta_q;
  tile.first_token = q_begin + tile.first_query;
  tile.rows = tile.first_query < 0 ? 0 : min(cta_q, tile.q_len - tile.first_query);
  if (params.finished != nullptr && params.finished[tile.sequence]) {
    tile.rows = 0;
  }
  return tile;
}

}  // namespace attn
