// SPDX-License-Identifier: Apache-2.0
// A column of a decode launch: its sequences counted, and cut into ranges.
#pragma once

#include "attn/sm80/decode_empty_rows.cuh"
#include "attn/sm80/decode_window.cuh"

namespace attn::sm80 {

// A column, and which of its ranges.
struct ColumnPlace {
  int column;
  int range;

  // The columns of a range are neighbours.
  __device__ __forceinline__ static ColumnPlace of(int index, int columns) {
    const int range = quotient(index, columns);
    return {index - range * columns, range};
  }
};

template <class T>
__device__ __forceinline__ void assign_column(CtaWork& work,
                                              const DecodeArguments<T>& arguments,
                                              ColumnPlace place,
                                              int ranges) {
  work.ranges = ranges;
  work.range = place.range;
  work.column = place.column;
  work.tile = row_tile_of(arguments.params, arguments.plan, arguments.ranges, work.column);
}

// Those of this CTA where CTAs have them in order.
template <class T>
__device__ __forceinline__ void assign_column(CtaWork& work,
                                              const DecodeArguments<T>& arguments,
                                              int columns,
                                              int ranges) {
  assign_column(work, arguments, ColumnPlace::of(blockIdx.x, columns), ranges);
}

// A window of sequences, whose tiles are added to the totals.
template <class Config>
__device__ __forceinline__ Window count_window(ColumnTotals& totals,
                                               const DecodeArguments<typename Config::T>& arguments,
                                               const RowTile& tile,
                                               const Lengths& own,
                                               int first,
                                               int count,
                                               int begin,
                                               int lane) {
  const Window window = make_window<Config>(arguments, tile, own, first, count, begin, lane);
  const int units = window.units;
  totals.tiles += __popc(__ballot_sync(kWarp, units > 0));
  totals.most = max(totals.most, __reduce_max_sync(kWarp, units));
  totals.fewest = min(totals.fewest, __reduce_min_sync(kWarp, units > 0 ? units : kMaxUnits));
  return window;
}

// The only sequence of a launch: what all lanes know, they need not tell each other.
template <class Config>
__device__ __forceinline__ Window count_one(ColumnTotals& totals,
                                            const DecodeArguments<typename Config::T>& arguments,
                                            const RowTile& tile,
                                            const Lengths& own,
                                            int lane) {
  const SeenKeys seen = seen_by_tile(arguments.params, 0, own, tile);
  const int units = units_of<Config>(arguments, seen.by_some);
  totals = {units, units > 0 ? 1 : 0, units, units};
  return {0, units, lane == 0 ? 0 : units, units, own, seen};
}

// Zeros, and an lse of -inf, for sequences of a window that see no key. Range r of a column sees to
// those whose index is r modulo the ranges, this warp to the rows first_row, first_row + step, ...
template <class Config>
__device__ __forceinline__ void clear_empty(const DecodeArguments<typename Config::T>& arguments,
                                            const CtaWork& work,
                                            const Window& window,
                                            const Lengths& own,
                                            int first_row,
                                            int step,
                                            int lane) {
  const bool is_empty = window.units == 0 && work.tile.tokens_of(own.tokens.count) > 0;
  if (__any_sync(kWarp, is_empty)) {
    const bool is_own = is_empty && (window.first + lane) % work.ranges == work.range;
    const unsigned lanes = __ballot_sync(kWarp, is_own);
    const auto empty = EmptyRows<typename Config::T>::of(arguments);
    clear_rows<Config>(empty, work.tile, own.tokens, lanes, first_row, step);
  }
}

// The range of this CTA; not below cut.ranges where there is nothing to compute.
__device__ __forceinline__ void cut_work(CtaWork& work,
                                         const ColumnTotals& totals,
                                         const RangePlan& plan) {
  work.cut = cut_column(totals, plan, work.ranges);
  work.units = {0, 0, 0, 0};
  if (work.range < work.cut.ranges) {
    work.units = units_of_range(work.cut, work.range);
  }
  work.streamed = totals.units <= plan.streamed_units;
}

// Where a CTA begins.
struct Start {
  CtaWork work;   // as in storage; units is empty where there is nothing to compute
  Window window;  // does not lie behind the first sequence of the range
};

}  // namespace attn::sm80
