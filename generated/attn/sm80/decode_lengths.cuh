// SPDX-License-Identifier: Apache-2.0
// What a decode launch says of its sequences, how many units of a column each of them has, and the
// rows of those that have none.
#pragma once

#include "attn/decode_ranges.cuh"
#include "attn/row_tile.cuh"
#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_traits.cuh"
#include "attn/sm80/softmax.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

constexpr unsigned kWarp = 0xffffffffu;
constexpr int kMaxUnits = 0x7fffffff;

// --- one sequence of a column -------------------------------------------------------------------

// What the launch says of a sequence. One that is finished, or does not exist, has no tokens.
struct Lengths {
  Tokens tokens;
  int keys;  // of the whole sequence

  __device__ __forceinline__ bool operator!=(const Lengths& other) const {
    return tokens.begin != other.tokens.begin || tokens.count != other.tokens.count ||
           keys != other.keys;
  }
};

// How lengths are read. Past L1 is for those that the launch before this one may still write: a
// line that L1 keeps would hide what it writes.
enum class Reading { kThroughL1, kPastL1 };

template <Reading kReading, class Value>
__device__ __forceinline__ Value read(const Value* from) {
  return kReading == Reading::kPastL1 ? __ldcg(from) : *from;
}

// All loads go out together, with no branch between them: these are the first of the launch, and
// whatever follows waits for them.
template <Reading kReading = Reading::kThroughL1, class T>
__device__ __forceinline__ Lengths load_lengths(const AttentionParams<T>& params, int sequence) {
  const bool exists = sequence < params.batch_size;
  const int at = exists ? sequence : 0;
  const int first_query = read<kReading>(params.cu_q_len + at);
  const int last_query = read<kReading>(params.cu_q_len + at + 1);
  const int first_key = read<kReading>(params.cu_k_len + at);
  const int last_key = read<kReading>(params.cu_k_len + at + 1);
  bool has_tokens = exists;
  if (params.finished != nullptr) {
    has_tokens &= read<kReading>(reinterpret_cast<const char*>(params.finished) + at) == 0;
  }
  return {{first_query, has_tokens ? last_query - first_query : 0}, last_key - first_key};
}

// What memory says of at most 32 sequences, element i of each array in lane i (and the last one
// behind it): one request for each array, since all warps of a launch ask the same lines of L2.
struct LengthWords {
  int query;
  int key;
  int end_query;  // element 32, where there are as many sequences
  int end_key;
  int finished;  // not 0: it is

  // Past L1: the launch before this one may still write them.
  template <class T>
  __device__ __forceinline__ static LengthWords read(const AttentionParams<T>& params, int lane) {
    const int at = min(lane, params.batch_size);
    LengthWords words{__ldcg(params.cu_q_len + at), __ldcg(params.cu_k_len + at), 0, 0, 0};
    if (params.batch_size == 32) {
      words.end_query = __ldcg(params.cu_q_len + 32);
      words.end_key = __ldcg(params.cu_k_len + 32);
    }
    if (params.finished != nullptr) {
      const auto* const finished = reinterpret_cast<const char*>(params.finished);
      words.finished = __ldcg(finished + min(lane, params.batch_size - 1));
    }
    return words;
  }

  __device__ __forceinline__ bool operator!=(const LengthWords& other) const {
    return query != other.query || key != other.key || end_query != other.end_query ||
           end_key != other.end_key || finished != other.finished;
  }

  // The lengths of the sequence of each lane, or in all lanes those of the only one.
  template <class T>
  __device__ __forceinline__ Lengths lengths(const AttentionParams<T>& params,
                                             bool is_one,
                                             int lane) const {
    const int own = is_one ? 0 : lane;
    const int next = is_one ? 1 : lane + 1;
    const int first_query = __shfl_sync(kWarp, query, own);
    const int first_key = __shfl_sync(kWarp, key, own);
    int last_query = __shfl_sync(kWarp, query, next % 32);
    int last_key = __shfl_sync(kWarp, key, next % 32);
    if (next == 32) {
      last_query = end_query;
      last_key = end_key;
    }
    const bool is_done = __shfl_sync(kWarp, finished, own) != 0;
    const bool has_tokens = own < params.batch_size && !is_done;
    return {{first_query, has_tokens ? last_query - first_query : 0}, last_key - first_key};
  }
};

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

// --- rows that see no key -----------------------------------------------------------------------

// Where such rows go.
template <class T>
struct EmptyRows {
  T* out;
  float* lse;           // null: not wanted
  float* part_output;   // null: the rows are complete. Otherwise the part of a rank that has none
  float* part_max_sum;  // of the keys: of split 0 where splits are merged later
  int num_heads;
  int token_num;

  __device__ __forceinline__ static EmptyRows of(const DecodeArguments<T>& arguments) {
    const AttentionParams<T>& params = arguments.params;
    EmptyRows rows{params.out, params.lse, nullptr, nullptr, params.num_heads, params.token_num};
    if (params.cp_size > 1) {
      const bool has_splits = arguments.ranges.pieces && arguments.plan.split_cnt > 1;
      rows.part_output = has_splits ? params.partial_O : params.cp_O;
      rows.part_max_sum = has_splits ? params.partial_ML : params.cp_ML;
    }
    return rows;
  }

  // Zeros, and an lse of -inf. Called by a warp.
  template <class Config>
  __device__ __forceinline__ void clear(int64_t token, int head, int lane) const {
    const int64_t row = token * num_heads + head;
    if (part_output != nullptr) {
      clear_part<Config>(row, lane);
      return;
    }
    if (lane < Config::kHeadDim / 8) {
      reinterpret_cast<uint4*>(out + row * Config::kHeadDim)[lane] = {0, 0, 0, 0};
    }
    if (lse != nullptr && lane == 0) {
      lse[static_cast<int64_t>(head) * token_num + token] = -kInfinity;
    }
  }

 private:
  template <class Config>
  __device__ __forceinline__ void clear_part(int64_t row, int lane) const {
    float* const output = part_output + row * Config::kHeadDim;
#pragma unroll 1
    for (int column = lane * 4; column < Config::kHeadDim; column += 128) {
      *reinterpret_cast<float4*>(output + column) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    if (lane == 0) {
      *reinterpret_cast<float2*>(part_max_sum + row * 2) = {-kInfinity, 0.0f};
    }
  }
};

// The rows first_row, first_row + step, ... of the sequences of some lanes. Called by a warp.
template <class Config>
__device__ __noinline__ void clear_rows(EmptyRows<typename Config::T> empty,
                                        RowTile tile,
                                        Tokens tokens,
                                        unsigned lanes,
                                        int first_row,
                                        int step) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (; lanes != 0; lanes &= lanes - 1) {
    const int owner = __ffs(lanes) - 1;
    const int begin = __shfl_sync(kWarp, tokens.begin, owner);
    const int rows = tile.tokens_of(__shfl_sync(kWarp, tokens.count, owner)) * tile.heads;
#pragma unroll 1
    for (int row = first_row; row < rows; row += step) {
      empty.template clear<Config>(begin + tile.query(row), tile.head(row), lane);
    }
  }
}

}  // namespace attn::sm80
