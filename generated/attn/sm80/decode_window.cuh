// SPDX-License-Identifier: Apache-2.0
// Which keys of each sequence the rows of a tile see, and how many units of a column those are, of
// 32 sequences at a time.
#pragma once

#include "attn/key_range.cuh"
#include "attn/sm80/decode_lengths.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

constexpr int kMaxUnits = 0x7fffffff;

// --- one sequence of a column -------------------------------------------------------------------

// What few calls need is not inlined, and takes all by value: what stands behind a reference to the
// arguments of the kernel, a function would read from memory.

// Which keys are on a rank of a context-parallel group.
struct RankKeys {
  KeySharding sharding;
  int size;
  int rank;
  int chunk;
};

// The general case of seen_by; `origin` is the position of query 0.
__device__ __noinline__ inline KeyRange seen_in_general(
    int origin, int length, int window, RankKeys rank, int query) {
  const KeyShards shards = shards_of(rank.sharding, rank.size, rank.rank, rank.chunk, length);
  const VisibleKeys visible{origin, shards.keys_before(length), window, true, shards};
  return visible.any(query, query);
}

// Keys that a query sees; anything of a sequence that does not exist. Most calls have neither a
// window nor ranks, and the compiler then knows what is left of it: this is asked before any key is
// read, so that each step counts.
template <class T>
__device__ __forceinline__ KeyRange
seen_by(const AttentionParams<T>& params, int sequence, const Lengths& lengths, int query) {
  const int keys = lengths.keys;
  const int origin = keys - lengths.tokens.count;
  if (params.cp_size == 1 && params.window_size == 0 && params.offset_q == nullptr) {
    return VisibleKeys{origin, keys, 0, true, {1, 0, 1, false}}.any(query, query);
  }
  const RankKeys rank{params.cp_sharding, params.cp_size, params.cp_rank, params.cp_chunk};
  const int first =
      params.offset_q == nullptr ? origin : params.offset_q[min(sequence, params.batch_size - 1)];
  return seen_in_general(first, keys, params.window_size, rank, query);
}

// Keys that the rows of a tile see.
struct SeenKeys {
  KeyRange by_some;
  KeyRange by_all;
};

// Consecutive sequences, one to a lane: what a lane has of its own, and the units of the column
// before it. Any lane's can be asked for, which is faster than to load and to find it again.
struct Window {
  int first;  // sequence of lane 0
  int end;    // units before the next window
  int before;
  int units;
  Lengths lengths;
  SeenKeys seen;

  __device__ __forceinline__ Window of_lane(int lane) const {
    const auto theirs = [&](int own) { return __shfl_sync(kWarp, own, lane); };
    const auto range = [&](KeyRange own) { return KeyRange{theirs(own.begin), theirs(own.end)}; };
    return {first,
            end,
            theirs(before),
            theirs(units),
            {{theirs(lengths.tokens.begin), theirs(lengths.tokens.count)}, theirs(lengths.keys)},
            {range(seen.by_some), range(seen.by_all)}};
  }
};

// Limits never decrease from one query to the next, so the first and the last token of a tile bound
// what all of its rows see and what some see.
template <class T>
__device__ __forceinline__ SeenKeys seen_by_tile(const AttentionParams<T>& params,
                                                 int sequence,
                                                 const Lengths& lengths,
                                                 const RowTile& tile) {
  const int tokens = tile.tokens_of(lengths.tokens.count);
  const KeyRange first = seen_by(params, sequence, lengths, tile.first_query);
  if (tokens <= 1) {
    const KeyRange some = tokens == 0 ? KeyRange{0, 0} : first;
    return {some, some};
  }
  const KeyRange last = seen_by(params, sequence, lengths, tile.first_query + tokens - 1);
  return {{first.begin, last.end}, {last.begin, first.end}};
}

// The splits that the planner asks for.
__device__ __noinline__ inline int count_pieces(TileRange stages, TilePlan plan) {
  return split_count(stages.begin, stages.end, plan);
}

__device__ __noinline__ inline TileRange piece_of(TileRange stages, TilePlan plan, int split) {
  return split_range(stages.begin, stages.end, plan, split);
}

// Units of a tile.
template <class Config>
__device__ __forceinline__ int units_of(const DecodeArguments<typename Config::T>& arguments,
                                        KeyRange seen) {
  const TileRange stages = tiles_of(seen, TileOf<Config>::kCtaS);
  return arguments.ranges.pieces ? count_pieces(stages, arguments.plan) : stages.end - stages.begin;
}

// --- 32 sequences -------------------------------------------------------------------------------

// Right in the first `count` lanes.
__device__ __forceinline__ int inclusive_sum(int value, int count, int lane) {
#pragma unroll 1
  for (int step = 1; step < count; step *= 2) {
    const int below = __shfl_up_sync(kWarp, value, step);
    value += lane >= step ? below : 0;
  }
  return value;
}

// The window that begins after `begin` units, from the lengths of its `count` sequences.
template <class Config>
__device__ __forceinline__ Window make_window(const DecodeArguments<typename Config::T>& arguments,
                                              const RowTile& tile,
                                              const Lengths& own,
                                              int first,
                                              int count,
                                              int begin,
                                              int lane) {
  const SeenKeys seen = seen_by_tile(arguments.params, first + lane, own, tile);
  const int units = units_of<Config>(arguments, seen.by_some);
  const int sum = inclusive_sum(units, count, lane);
  const int end = begin + __shfl_sync(kWarp, sum, count - 1);
  return {first, end, lane < count ? begin + sum - units : end, units, own, seen};
}

}  // namespace attn::sm80
