// SPDX-License-Identifier: Apache-2.0
// How the keys of all sequences are shared out among the CTAs of a decode kernel, from the lengths
// alone and so on the device: the one place that does it, for the kernel and (compiled by a host
// compiler) for the tests. attn_runtime/decode_ranges.py holds the numpy twin.
//
// A column is a KV head and a tile of query rows. Its sequences lie end to end in units: stages of
// cta_s keys, or whole splits (RangePlan::pieces). A range is what one CTA computes of a column.
#pragma once

#include "attn/params.h"

namespace attn {

// The units of a column. A tile is what one sequence has of them; empty ones do not count.
struct ColumnTotals {
  int units;
  int tiles;
  int most;    // units of the longest tile
  int fewest;  // units of the shortest
};

// Every `period` units are cut into `parts` ranges, the first `longer` of which hold one unit more
// than the others.
struct RangeCut {
  int ranges;  // of the column; none is empty
  int period;
  int parts;
  int units;   // period / parts
  int longer;  // period % parts
};

// Of numbers that are not negative, which are divided in fewer steps: columns are cut before the
// first key is read, so that each step counts.
__device__ __forceinline__ int quotient(int value, int by) {
  return static_cast<int>(static_cast<unsigned>(value) / static_cast<unsigned>(by));
}

__device__ __forceinline__ RangeCut make_cut(int ranges, int period, int parts) {
  const int units = parts > 0 ? quotient(period, parts) : 0;
  return {ranges, period, parts, units, period - units * parts};
}

// A cut that goes to the ends of tiles, all of which hold totals.most units: each into k ranges, or
// k of them to a range. Empty where they do not come out even.
__device__ __forceinline__ RangeCut make_aligned_cut(const ColumnTotals& totals, int ranges) {
  if (totals.tiles <= ranges) {
    const int parts = quotient(ranges, totals.tiles);
    return make_cut(totals.tiles * parts, totals.most, parts);
  }
  const int tiles = quotient(totals.tiles + ranges - 1, ranges);
  const int periods = quotient(totals.tiles, tiles);
  const int units = totals.most * tiles;
  return {periods * tiles == totals.tiles ? periods : 0, units, 1, units, 0};
}

// Cuts a column into at most `most` ranges of equal length.
//
// Tiles of one length and little work are cut at their ends: fewer splits to merge, for some CTAs
// left idle. That pays while a range is short (aligned_units), and while the longest is at most
// 10/9 of the longest of equal ones. One tile ends where the column does.
__device__ __forceinline__ RangeCut cut_column(const ColumnTotals& totals,
                                               const RangePlan& plan,
                                               int most) {
  const int ranges = most < totals.units ? most : totals.units;
  if (totals.tiles > 1 && totals.most == totals.fewest &&
      totals.units <= static_cast<int64_t>(plan.aligned_units) * ranges) {
    const RangeCut cut = make_aligned_cut(totals, ranges);
    const int64_t longest = cut.units + (cut.longer > 0 ? 1 : 0);
    const int64_t equal = quotient(totals.units - 1, ranges) + 1;
    if (cut.ranges > 0 && longest * 9 <= equal * 10) {
      return cut;
    }
  }
  return make_cut(ranges, totals.units, ranges);
}

// Units [begin, end) of a column: part `part` of the period that begins after `period` units.
struct UnitRange {
  int begin;
  int end;
  int period;
  int part;
};

// The units of a range.
//
//   period = q parts + m:   range i of a period begins at i q + min(i, m)
__device__ __forceinline__ UnitRange units_of_range(const RangeCut& cut, int range) {
  const int whole = cut.parts == 1 ? range : range < cut.parts ? 0 : quotient(range, cut.parts);
  const int part = range - whole * cut.parts;
  const int period = whole * cut.period;
  const int begin = period + part * cut.units + (part < cut.longer ? part : cut.longer);
  return {begin, begin + cut.units + (part < cut.longer ? 1 : 0), period, part};
}

// The range that holds a unit.
__device__ __forceinline__ int range_of(const RangeCut& cut, int unit) {
  const int whole = unit < cut.period ? 0 : quotient(unit, cut.period);
  const int inside = unit - whole * cut.period;
  const int in_longer = cut.longer * (cut.units + 1);
  const bool is_longer = inside < in_longer;
  const int begin = is_longer ? 0 : in_longer;
  const int part = quotient(inside - begin, is_longer ? cut.units + 1 : cut.units);
  return whole * cut.parts + (is_longer ? part : cut.longer + part);
}

}  // namespace attn
