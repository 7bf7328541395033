// SPDX-License-Identifier: Apache-2.0
// What a decode CTA computes, found from the lengths of all sequences: its column, its range, and
// one after the other the segments of that range.
#pragma once

#include "attn/decode_ranges.cuh"
#include "attn/row_tile.cuh"
#include "attn/sm80/decode_traits.cuh"
#include "attn/sm80/softmax.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

constexpr unsigned kWarp = 0xffffffffu;

// --- one sequence of a column -------------------------------------------------------------------

template <class T>
__device__ __forceinline__ Tokens tokens_of(const AttentionParams<T>& params, int sequence) {
  if (sequence >= params.batch_size || (params.finished != nullptr && params.finished[sequence])) {
    return {0, 0};
  }
  const int begin = params.cu_q_len[sequence];
  return {begin, params.cu_q_len[sequence + 1] - begin};
}

// Units with keys that some row of the tile sees.
template <class T>
__device__ __forceinline__ int units_of(const DecodeArguments<T>& arguments,
                                        const RowTile& tile,
                                        int sequence,
                                        Tokens tokens) {
  const int count = tile.tokens_of(tokens.count);
  if (count == 0) {
    return 0;
  }
  const VisibleKeys visible = visible_keys(arguments.params, sequence, tokens.count, true);
  const TileRange stages =
      tiles_of(visible.any(tile.first_query, tile.first_query + count - 1), arguments.plan.cta_s);
  return arguments.ranges.pieces ? split_count(stages.begin, stages.end, arguments.plan)
                                 : stages.end - stages.begin;
}

// --- 32 sequences -------------------------------------------------------------------------------

__device__ __forceinline__ int inclusive_sum(int value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(kWarp, value, step);
    value += lane >= step ? below : 0;
  }
  return value;
}

__device__ __forceinline__ int fewest_units(int units) {
  return __reduce_min_sync(kWarp, units > 0 ? units : 0x7fffffff);
}

// Consecutive sequences, one to a lane, and the units of the column before each.
struct Window {
  int first;  // sequence of lane 0
  int end;    // units before the next window
  int before;
  int units;

  __device__ __forceinline__ static Window make(int first, int begin, int units, int lane) {
    const int sum = inclusive_sum(units, lane);
    return {first, begin + __shfl_sync(kWarp, sum, 31), begin + sum - units, units};
  }

  template <class T>
  __device__ __forceinline__ static Window load(
      const DecodeArguments<T>& arguments, const RowTile& tile, int first, int begin, int lane) {
    const int sequence = first + lane;
    const Tokens tokens = tokens_of(arguments.params, sequence);
    return make(first, begin, units_of(arguments, tile, sequence, tokens), lane);
  }
};

// --- the segments of a range --------------------------------------------------------------------

template <class Config>
class Walk {
  using T = typename Config::T;

 public:
  // The window does not lie behind the first sequence of the range.
  __device__ __forceinline__
  Walk(const DecodeArguments<T>& arguments, const CtaWork& work, const Window& window, int lane)
      : arguments_(arguments),
        work_(work),
        window_(window),
        unit_(range_begin(work.cut, work.range)),
        end_(range_begin(work.cut, work.range + 1)),
        lane_(lane) {}

  __device__ __forceinline__ bool is_at_end() const { return unit_ >= end_; }

  // The segment that begins where the last one ended.
  __device__ __forceinline__ Segment next() {
    while (unit_ >= window_.end) {
      window_ = Window::load(arguments_, work_.tile, window_.first + 32, window_.end, lane_);
    }
    const int owner = 31 - __clz(__ballot_sync(kWarp, window_.before <= unit_));
    const int before = __shfl_sync(kWarp, window_.before, owner);
    const int units = __shfl_sync(kWarp, window_.units, owner);
    const RowTile& tile = work_.tile;
    Segment segment;
    segment.sequence = window_.first + owner;
    segment.tokens = tokens_of(arguments_.params, segment.sequence);
    const int tokens = tile.tokens_of(segment.tokens.count);
    const int last_query = tile.first_query + tokens - 1;
    const VisibleKeys visible =
        visible_keys(arguments_.params, segment.sequence, segment.tokens.count, true);
    segment.rows = tokens * tile.heads;
    segment.seen = visible.any(tile.first_query, last_query);
    segment.seen_by_all = visible.all(tile.first_query, last_query);
    const TileRange stages = tiles_of(segment.seen, arguments_.plan.cta_s);
    if (arguments_.ranges.pieces) {
      segment.split = unit_ - before;
      segment.splits = units;
      segment.stages = split_range(stages.begin, stages.end, arguments_.plan, segment.split);
      ++unit_;
    } else {
      const int first_range = range_of(work_.cut, before);
      segment.split = work_.range - first_range;
      segment.splits = range_of(work_.cut, before + units - 1) - first_range + 1;
      const int begin = stages.begin + unit_ - before;
      const int count = min(before + units, end_) - unit_;
      segment.stages = {begin, begin + count};
      unit_ += count;
    }
    return segment;
  }

 private:
  const DecodeArguments<T>& arguments_;
  const CtaWork& work_;
  Window window_;
  int unit_;
  int end_;
  int lane_;
};

// --- the plan of a CTA --------------------------------------------------------------------------

template <class Config>
class Scheduler {
  using T = typename Config::T;
  using Storage = DecodeStorage<Config>;
  static constexpr int kWarps = DecodeTraits<Config>::kWarps;

 public:
  __device__ __forceinline__
  Scheduler(Storage& storage, const DecodeArguments<T>& arguments, int warp, int lane)
      : storage_(storage), arguments_(arguments), warp_(warp), lane_(lane) {}

  // Leaves storage.work; its range is not below its cut.ranges where there is nothing to compute.
  // Returns the window in which to look for the first sequence. Called by all warps.
  __device__ __forceinline__ Window make() {
    const Window window = arguments_.params.batch_size <= 32 ? in_one_window() : in_chunks();
    if (threadIdx.x == 0) {
      storage_.work = work_;
    }
    __syncthreads();  // the work is visible to all warps
    return window;
  }

 private:
  // Up to 32 sequences: every warp has all of them in its lanes.
  __device__ __forceinline__ Window in_one_window() {
    const Tokens tokens = tokens_of(arguments_.params, lane_);
    assign_column(__reduce_max_sync(kWarp, tokens.count));
    const int units = units_of(arguments_, work_.tile, lane_, tokens);
    const Window window = Window::make(0, 0, units, lane_);
    clear_empty(tokens, 0, units, warp_, kWarps);
    cut({window.end,
         __popc(__ballot_sync(kWarp, units > 0)),
         __reduce_max_sync(kWarp, units),
         fewest_units(units)});
    return window;
  }

  // More: each warp counts its chunks of them, then all know the units of every chunk.
  __device__ __forceinline__ Window in_chunks() {
    const int batch = arguments_.params.batch_size;
    const int span = (batch + 32 * Storage::kChunks - 1) / (32 * Storage::kChunks) * 32;
    assign_column(longest_query());
    count_chunks(span);
    __syncthreads();  // the units of every chunk are visible

    const int units = storage_.chunk_units[lane_];
    const int before = inclusive_sum(units, lane_) - units;
    ColumnTotals totals{__shfl_sync(kWarp, before + units, 31), 0, 0, 0x7fffffff};
    for (int other = 0; other < kWarps; ++other) {
      totals.tiles += storage_.counts[other].tiles;
      totals.most = max(totals.most, storage_.counts[other].most);
      totals.fewest = min(totals.fewest, storage_.counts[other].fewest);
    }
    cut(totals);
    const int unit = work_.range < work_.cut.ranges ? range_begin(work_.cut, work_.range) : 0;
    const int chunk = 31 - __clz(__ballot_sync(kWarp, before <= unit));
    return Window::load(
        arguments_, work_.tile, chunk * span, __shfl_sync(kWarp, before, chunk), lane_);
  }

  __device__ __forceinline__ int longest_query() {
    int tokens = 0;
    for (int i = threadIdx.x; i < arguments_.params.batch_size; i += kWarps * 32) {
      tokens = max(tokens, tokens_of(arguments_.params, i).count);
    }
    tokens = __reduce_max_sync(kWarp, tokens);
    if (lane_ == 0) {
      storage_.counts[warp_].tokens = tokens;
    }
    __syncthreads();  // the longest query of each warp's sequences is visible
    for (int other = 0; other < kWarps; ++other) {
      tokens = max(tokens, storage_.counts[other].tokens);
    }
    return tokens;
  }

  // The column and the range of this CTA, when no sequence has more query tokens. The columns of a
  // range are neighbours.
  __device__ __forceinline__ void assign_column(int tokens) {
    const int query_tiles = max((tokens + arguments_.plan.cta_q - 1) / arguments_.plan.cta_q, 1);
    const int columns = arguments_.params.num_kv_heads * arguments_.ranges.head_tiles * query_tiles;
    work_.range = blockIdx.x / columns;
    work_.column = blockIdx.x - work_.range * columns;
    work_.ranges = ranges_of_column(arguments_.ranges, columns);
    work_.tile = row_tile_of(arguments_.params, arguments_.plan, arguments_.ranges, work_.column);
  }

  __device__ __forceinline__ void cut(const ColumnTotals& totals) {
    work_.cut = cut_column(totals, arguments_.ranges, work_.ranges);
    work_.streamed = totals.units <= arguments_.ranges.streamed_units;
  }

  __device__ __forceinline__ void count_chunks(int span) {
    WarpCount count{0, 0, 0x7fffffff, 0};
    for (int chunk = warp_; chunk < Storage::kChunks; chunk += kWarps) {
      const int first = chunk * span;
      const int end = min(first + span, arguments_.params.batch_size);
      int units_of_chunk = 0;
      for (int window = first; window < end; window += 32) {
        const int sequence = window + lane_;
        const Tokens tokens = tokens_of(arguments_.params, sequence);
        const int units = units_of(arguments_, work_.tile, sequence, tokens);
        clear_empty(tokens, window, units, 0, 1);
        count.tiles += __popc(__ballot_sync(kWarp, units > 0));
        count.most = max(count.most, __reduce_max_sync(kWarp, units));
        count.fewest = min(count.fewest, fewest_units(units));
        units_of_chunk += __reduce_add_sync(kWarp, units);
      }
      if (lane_ == 0) {
        storage_.chunk_units[chunk] = units_of_chunk;
      }
    }
    if (lane_ == 0) {
      count.tokens = storage_.counts[warp_].tokens;
      storage_.counts[warp_] = count;
    }
  }

  // Zeros, and an lse of -inf, for sequences that see no key. Range r of a column sees to those
  // whose index is r modulo the ranges; this warp to the rows first, first + step, ...
  __device__ __forceinline__ void clear_empty(
      Tokens tokens, int window, int units, int first, int step) {
    const bool is_empty = units == 0 && work_.tile.tokens_of(tokens.count) > 0 &&
                          (window + lane_) % work_.ranges == work_.range;
    for (unsigned left = __ballot_sync(kWarp, is_empty); left != 0; left &= left - 1) {
      const int owner = __ffs(left) - 1;
      const int begin = __shfl_sync(kWarp, tokens.begin, owner);
      const int count = __shfl_sync(kWarp, tokens.count, owner);
      const int rows = work_.tile.tokens_of(count) * work_.tile.heads;
      for (int row = first; row < rows; row += step) {
        clear_row(begin + work_.tile.query(row), work_.tile.head(row));
      }
    }
  }

  __device__ __forceinline__ void clear_row(int64_t token, int head) {
    const AttentionParams<T>& params = arguments_.params;
    if (params.cp_size > 1) {
      clear_part(token * params.num_heads + head);
      return;
    }
    T* const out = params.out + (token * params.num_heads + head) * Config::kHeadDim;
    if (lane_ < Config::kHeadDim / 8) {
      reinterpret_cast<uint4*>(out)[lane_] = {0, 0, 0, 0};
    }
    if (params.lse != nullptr && lane_ == 0) {
      params.lse[static_cast<int64_t>(head) * params.token_num + token] = -kInfinity;
    }
  }

  // The part of a rank that has none of the keys: of split 0 where splits are merged later.
  __device__ __forceinline__ void clear_part(int64_t row) {
    const AttentionParams<T>& params = arguments_.params;
    const bool has_splits = arguments_.ranges.pieces && arguments_.plan.split_cnt > 1;
    float* const output = (has_splits ? params.partial_O : params.cp_O) + row * Config::kHeadDim;
    for (int column = lane_ * 4; column < Config::kHeadDim; column += 128) {
      *reinterpret_cast<float4*>(output + column) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    if (lane_ == 0) {
      float* const max_sum = has_splits ? params.partial_ML : params.cp_ML;
      *reinterpret_cast<float2*>(max_sum + row * 2) = {-kInfinity, 0.0f};
    }
  }

  Storage& storage_;
  const DecodeArguments<T>& arguments_;
  int warp_;
  int lane_;
  CtaWork work_;
};

}  // namespace attn::sm80
