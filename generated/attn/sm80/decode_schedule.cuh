// SPDX-License-Identifier: Apache-2.0
// What a decode CTA computes, found from the lengths of all sequences: its column, its range, and
// one after the other the segments of that range.
#pragma once

#include "attn/decode_ranges.cuh"
#include "attn/row_tile.cuh"
#include "attn/sm80/decode_instructions.cuh"
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

// What `look(VisibleKeys)` says of a sequence. Most calls have neither a window nor ranks, and the
// compiler then knows what is left of it: this is asked before any key is read, so that each step
// counts.
template <class T, class Look>
__device__ __forceinline__ KeyRange
look_at_keys(const AttentionParams<T>& params, int sequence, int q_len, Look look) {
  if (params.cp_size == 1 && params.window_size == 0 && params.offset_q == nullptr) {
    const int length = params.cu_k_len[sequence + 1] - params.cu_k_len[sequence];
    return look(VisibleKeys{length - q_len, length, 0, true, {1, 0, 1, false}});
  }
  return look(visible_keys(params, sequence, q_len, true));
}

// Units with keys that some row of the tile sees.
template <class Config>
__device__ __forceinline__ int units_of(const DecodeArguments<typename Config::T>& arguments,
                                        const RowTile& tile,
                                        int sequence) {
  const Tokens tokens = tokens_of(arguments.params, sequence);
  const int count = tile.tokens_of(tokens.count);
  if (count == 0) {
    return 0;
  }
  const int first = tile.first_query;
  const KeyRange seen =
      look_at_keys(arguments.params, sequence, tokens.count, [&](const VisibleKeys& visible) {
        return visible.any(first, first + count - 1);
      });
  const TileRange stages = tiles_of(seen, TileOf<Config>::kCtaS);
  return arguments.ranges.pieces ? split_count(stages.begin, stages.end, arguments.plan)
                                 : stages.end - stages.begin;
}

// Where the rows of a segment lie and which keys they see, one row to a lane. Rows that the tile
// does not have see nothing. Called by a warp.
template <class Config>
__device__ __forceinline__ void place_rows(RowPlace (&rows)[DecodeTraits<Config>::kRows],
                                           const AttentionParams<typename Config::T>& params,
                                           const RowTile& tile,
                                           const Segment& segment,
                                           int lane) {
  const int query = tile.query(lane);
  const KeyRange seen =
      look_at_keys(params, segment.sequence, segment.tokens.count, [&](const VisibleKeys& visible) {
        return visible.any(query, query);
      });
  if (lane < DecodeTraits<Config>::kRows) {
    rows[lane] = {
        segment.tokens.begin + query, tile.head(lane), lane < segment.rows ? seen : KeyRange{0, 0}};
  }
  __syncwarp();  // all rows are visible to the warp
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

// Consecutive sequences, one to a lane, and the units of the column before each.
struct Window {
  int first;  // sequence of lane 0
  int end;    // units before the next window
  int before;
  int units;

  template <class Config>
  __device__ __forceinline__ static Window load(
      const DecodeArguments<typename Config::T>& arguments,
      const RowTile& tile,
      int first,
      int begin,
      int lane) {
    const int units = units_of<Config>(arguments, tile, first + lane);
    const int sum = inclusive_sum(units, lane);
    return {first, begin + __shfl_sync(kWarp, sum, 31), begin + sum - units, units};
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
      : arguments_(arguments), work_(work), window_(window), unit_(work.units.begin), lane_(lane) {}

  __device__ __forceinline__ bool is_at_end() const { return unit_ >= work_.units.end; }

  // The segment that begins where the last one ended.
  __device__ __forceinline__ Segment next() {
#pragma unroll 1
    while (unit_ >= window_.end) {
      window_ =
          Window::load<Config>(arguments_, work_.tile, window_.first + 32, window_.end, lane_);
    }
    const int owner = 31 - __clz(__ballot_sync(kWarp, window_.before <= unit_));
    const int before = __shfl_sync(kWarp, window_.before, owner);
    const int units = __shfl_sync(kWarp, window_.units, owner);
    Segment segment;
    segment.sequence = window_.first + owner;
    segment.tokens = tokens_of(arguments_.params, segment.sequence);
    see_keys(segment);
    const TileRange stages = tiles_of(segment.seen, TileOf<Config>::kCtaS);
    if (arguments_.ranges.pieces) {
      segment.split = unit_ - before;
      segment.splits = units;
      segment.stages = split_range(stages.begin, stages.end, arguments_.plan, segment.split);
      ++unit_;
    } else if (unit_ == before && before + units <= work_.units.end) {
      segment.split = 0;
      segment.splits = 1;
      segment.stages = stages;
      unit_ += units;
    } else {
      // Lane 0 asks for the range of the tile's first unit, the others for that of its last.
      const int range = range_of(work_.cut, lane_ == 0 ? before : before + units - 1);
      const int first_range = __shfl_sync(kWarp, range, 0);
      segment.split = work_.range - first_range;
      segment.splits = __shfl_sync(kWarp, range, 1) - first_range + 1;
      const int begin = stages.begin + unit_ - before;
      const int count = min(before + units, work_.units.end) - unit_;
      segment.stages = {begin, begin + count};
      unit_ += count;
    }
    return segment;
  }

 private:
  // Limits never decrease from one query to the next, so the first and the last token bound what
  // all see and what some see. Lane 0 finds those of the first, the others those of the last.
  __device__ __forceinline__ void see_keys(Segment& segment) const {
    const int tokens = work_.tile.tokens_of(segment.tokens.count);
    const int query = work_.tile.first_query + (lane_ == 0 ? 0 : tokens - 1);
    const KeyRange own = look_at_keys(
        arguments_.params, segment.sequence, segment.tokens.count, [&](const VisibleKeys& visible) {
          return visible.any(query, query);
        });
    segment.rows = tokens * work_.tile.heads;
    segment.seen = {__shfl_sync(kWarp, own.begin, 0), __shfl_sync(kWarp, own.end, 1)};
    segment.seen_by_all = {__shfl_sync(kWarp, own.begin, 1), __shfl_sync(kWarp, own.end, 0)};
  }

  const DecodeArguments<T>& arguments_;
  const CtaWork& work_;
  Window window_;
  int unit_;
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
      : storage_(storage),
        arguments_(arguments),
        warp_(warp),
        lane_(lane),
        is_small_(arguments.params.batch_size <= 32) {}

  // Leaves storage.work; its range is not below its cut.ranges where there is nothing to compute.
  // Returns a window that does not lie behind the first sequence of the range. Called by all warps.
  __device__ __forceinline__ Window make() {
    prefetch();
    assign_column(arguments_.plan.q_tiles == 1 ? 1 : longest_query());
    Window window = count_units();
    if (!is_small_) {
      window = gather_counts();
    }
    if (threadIdx.x == 0) {
      storage_.work = work_;
    }
    __syncthreads();  // the work is visible to all warps
    return window;
  }

 private:
  // Q and the block table are read as soon as the lengths are known: they may come to L2 meanwhile.
  // What a stale line would hold does not matter, since L2 is where all writes go.
  __device__ __forceinline__ void prefetch() {
    constexpr int kLine = 128;
    const AttentionParams<T>& params = arguments_.params;
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * (kWarps * 32) + threadIdx.x) * kLine;
    const int64_t token_bytes = params.stride * static_cast<int64_t>(sizeof(T));
    if (at < params.token_num * token_bytes) {
      prefetch_l2(reinterpret_cast<const char*>(params.q) + at);
    }
    if constexpr (Config::kCache == CacheType::kPaged) {
      const PagedIteratorParams& paged = params.paged_iter_params;
      if (at < static_cast<int64_t>(params.batch_size) * paged.max_blocks * 4) {
        prefetch_l2(reinterpret_cast<const char*>(paged.block_table) + at);
      }
    }
    if (is_small_ && lane_ <= params.batch_size) {
      prefetch_l1(params.cu_k_len + lane_);
    }
  }

  __device__ __forceinline__ int longest_query() {
    int tokens = 0;
    const int step = is_small_ ? 32 : kWarps * 32;
#pragma unroll 1
    for (int i = is_small_ ? lane_ : threadIdx.x; i < arguments_.params.batch_size; i += step) {
      tokens = max(tokens, tokens_of(arguments_.params, i).count);
    }
    tokens = __reduce_max_sync(kWarp, tokens);
    if (is_small_) {
      return tokens;
    }
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
    const RangePlan& plan = arguments_.ranges;
    const int cta_q = arguments_.plan.cta_q;
    int columns = plan.columns;
    work_.ranges = plan.ranges;
    if (tokens > cta_q) {
      columns *= (tokens + cta_q - 1) / cta_q;
      work_.ranges = max(plan.ctas / columns, 1);
    }
    work_.range = blockIdx.x / columns;
    work_.column = blockIdx.x - work_.range * columns;
    work_.tile = row_tile_of(arguments_.params, arguments_.plan, plan, work_.column);
  }

  // Counts the units of the column: of up to 32 sequences every warp all, of more each warp its
  // chunks of them.
  __device__ __forceinline__ Window count_units() {
    const int span = is_small_ ? 32 : sequences_of_chunk();
    const int chunks = is_small_ ? 1 : Storage::kChunks;
    ColumnTotals totals{0, 0, 0, kMaxUnits};
    Window window{};
#pragma unroll 1
    for (int chunk = is_small_ ? 0 : warp_; chunk < chunks; chunk += kWarps) {
      const int first = chunk * span;
      const int last = min(first + span, arguments_.params.batch_size);
      window.end = 0;
#pragma unroll 1
      for (int begin = first; begin < last; begin += 32) {
        window = Window::load<Config>(arguments_, work_.tile, begin, window.end, lane_);
        clear_empty(window);
        const int units = window.units;
        totals.tiles += __popc(__ballot_sync(kWarp, units > 0));
        totals.most = max(totals.most, __reduce_max_sync(kWarp, units));
        totals.fewest = min(totals.fewest, __reduce_min_sync(kWarp, units > 0 ? units : kMaxUnits));
      }
      if (!is_small_ && lane_ == 0) {
        storage_.chunk_units[chunk] = window.end;
      }
    }
    if (is_small_) {
      totals.units = window.end;
      cut(totals);
    } else if (lane_ == 0) {
      storage_.counts[warp_] = {totals.tiles, totals.most, totals.fewest, 0};
    }
    return window;
  }

  // What all warps have counted. Returns the window before the chunk in which the range begins.
  __device__ __forceinline__ Window gather_counts() {
    __syncthreads();  // the units of every chunk are visible
    const int units = storage_.chunk_units[lane_];
    const int before = inclusive_sum(units, lane_) - units;
    ColumnTotals totals{__shfl_sync(kWarp, before + units, 31), 0, 0, kMaxUnits};
    for (int other = 0; other < kWarps; ++other) {
      totals.tiles += storage_.counts[other].tiles;
      totals.most = max(totals.most, storage_.counts[other].most);
      totals.fewest = min(totals.fewest, storage_.counts[other].fewest);
    }
    cut(totals);
    const int chunk = 31 - __clz(__ballot_sync(kWarp, before <= work_.units.begin));
    return {chunk * sequences_of_chunk() - 32, __shfl_sync(kWarp, before, chunk), 0, 0};
  }

  // Chunks are whole windows.
  __device__ __forceinline__ int sequences_of_chunk() const {
    constexpr int kStep = 32 * Storage::kChunks;
    return (arguments_.params.batch_size + kStep - 1) / kStep * 32;
  }

  __device__ __forceinline__ void cut(const ColumnTotals& totals) {
    work_.cut = cut_column(totals, arguments_.ranges, work_.ranges);
    work_.units = {0, 0};
    if (work_.range < work_.cut.ranges) {
      work_.units = units_of_range(work_.cut, work_.range);
    }
    work_.streamed = totals.units <= arguments_.ranges.streamed_units;
  }

  // Zeros, and an lse of -inf, for sequences that see no key. Range r of a column sees to those
  // whose index is r modulo the ranges; where all warps see a window, each to some of the rows.
  __device__ __forceinline__ void clear_empty(const Window& window) {
    const int own = window.first + lane_;
    const Tokens tokens = tokens_of(arguments_.params, own);
    const bool is_empty = window.units == 0 && work_.tile.tokens_of(tokens.count) > 0 &&
                          own % work_.ranges == work_.range;
#pragma unroll 1
    for (unsigned left = __ballot_sync(kWarp, is_empty); left != 0; left &= left - 1) {
      const int owner = __ffs(left) - 1;
      const int begin = __shfl_sync(kWarp, tokens.begin, owner);
      const int count = __shfl_sync(kWarp, tokens.count, owner);
      const int rows = work_.tile.tokens_of(count) * work_.tile.heads;
#pragma unroll 1
      for (int row = is_small_ ? warp_ : 0; row < rows; row += is_small_ ? kWarps : 1) {
        clear_row(begin + work_.tile.query(row), work_.tile.head(row));
      }
    }
  }

  __device__ __forceinline__ void clear_row(int64_t token, int head) {
    const AttentionParams<T>& params = arguments_.params;
    const int64_t row = token * params.num_heads + head;
    if (params.cp_size > 1) {
      clear_part(row);
      return;
    }
    if (lane_ < Config::kHeadDim / 8) {
      reinterpret_cast<uint4*>(params.out + row * Config::kHeadDim)[lane_] = {0, 0, 0, 0};
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
#pragma unroll 1
    for (int column = lane_ * 4; column < Config::kHeadDim; column += 128) {
      *reinterpret_cast<float4*>(output + column) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    if (lane_ == 0) {
      float* const max_sum = has_splits ? params.partial_ML : params.cp_ML;
      *reinterpret_cast<float2*>(max_sum + row * 2) = {-kInfinity, 0.0f};
    }
  }

  static constexpr int kMaxUnits = 0x7fffffff;

  Storage& storage_;
  const DecodeArguments<T>& arguments_;
  int warp_;
  int lane_;
  bool is_small_;
  CtaWork work_;
};

}  // namespace attn::sm80
