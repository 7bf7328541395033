// SPDX-License-Identifier: Apache-2.0
// What a launch is estimated to take, in nanoseconds: splits and tiles are chosen by it. A model of
// three terms, not a simulation: it must rank choices. attn_runtime/cost.py is the twin: same names
// and integers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attn/limits.h"

namespace attn::detail {

// The launch of the reduction behind the kernel, and the slower end of a CTA that leaves a partial
// result; measured on an H100.
inline constexpr std::int64_t kMergeNs = 6500;
// Partial results are written, read back and merged; fitted to picks on an H200.
inline constexpr std::int64_t kMergeBytesPerNs = 3800;
// K and V are read no faster by all CTAs together; of calls with few query rows, on an H200.
inline constexpr std::int64_t kReadBytesPerNs = 3700;
// What CTAs of a cluster, which merge splits, begin and end later; fitted to picks on an H100.
inline constexpr std::int64_t kClusterMergeNs = 5500;

// Above these only orders of magnitude count, and no product leaves 64 bits.
inline constexpr std::int64_t kMostTiles = 1 << 24;
inline constexpr std::int64_t kMostSteps = 1 << 21;
inline constexpr std::int64_t kMostRows = 2147483647;
inline constexpr std::int64_t kMostRowBytes = 1 << 15;
inline constexpr std::int64_t kMostKeys = std::int64_t{1} << 47;
inline constexpr std::int64_t kCostMax = 65535;

constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t step) {
  return value / step + (value % step != 0);
}

// What a kernel has to do when nothing is split.
struct Work {
  std::int64_t tiles;       // query tiles with rows, over all heads
  std::int64_t shortest;    // key tiles that a query tile sees at least,
  std::int64_t longest;     // and at most
  std::int64_t rows;        // of the output
  std::int64_t row_bytes;   // that a split leaves of each
  std::int64_t read_bytes;  // of K and V, together
  std::int64_t grid;        // tiles that a launch has CTAs for, whatever the lengths
  bool is_mixed = false;    // lengths differ
};

// The work with every number below the one that matters no more.
inline Work bounded(const Work& work) {
  return {std::min(work.tiles, kMostTiles),
          std::min(work.shortest, kMostSteps),
          std::min(work.longest, kMostSteps),
          std::min(work.rows, kMostRows),
          std::min(work.row_bytes, kMostRowBytes),
          work.read_bytes,
          std::min(work.grid, kMostTiles),
          work.is_mixed};
}

// CTAs that the device holds at a time.
inline std::int64_t slots_of(const DeviceLimits& device, const KernelLimits& kernel) {
  return std::min(std::int64_t{device.sm_count} * kernel.ctas_per_sm, kMostTiles);
}

// Whether the splits of a tile are the CTAs of a cluster, which merge them: all tiles of the grid
// are then computed at a time.
//
// A cluster lies within a part of the device, and parts are not multiples of it: of 132
// multiprocessors of an H200, clusters of 2 to 8 CTAs fill 132, 117, 120, 110, 102, 105 and 120.
inline bool is_cluster(std::int64_t grid,
                       const DeviceLimits& device,
                       const KernelLimits& kernel,
                       std::int64_t splits) {
  const int eighths = splits == 2 ? 8 : splits == 4 || splits == 8 ? 7 : 6;
  const std::int64_t room = slots_of(device, kernel) * eighths / 8;
  return splits > 1 && splits <= kernel.merged_splits && grid * splits <= room;
}

// Every split writes its part of a row, and the reduction reads it and writes the row.
inline std::int64_t merge_ns(const Work& work, std::int64_t splits) {
  if (splits == 1) {
    return 0;
  }
  return kMergeNs + 2 * work.rows * work.row_bytes * (splits + 1) / kMergeBytesPerNs;
}

// What takes full_ns on an SM that holds all the CTAs it can, on one that holds `ctas`: a quarter
// of a CTA's time is its own, the rest is shared (where two fit, one alone took 0.53 to 0.70 of the
// time on an H100).
inline std::int64_t beside_ns(std::int64_t full_ns, std::int64_t ctas, const KernelLimits& kernel) {
  const std::int64_t shared = full_ns / 4 * 3 + full_ns % 4 * 3 / 4;
  return full_ns - shared + shared / kernel.ctas_per_sm * ctas;
}

// What a launch and its reduction take. `work` is bounded; splits are at most 128.
//
// CTAs are handed out as others end, the longest first where they differ. So all end together after
// an even share of everything, in which slots that the last wave leaves idle count as if they had
// one of the shortest; or the longest is waited for, alone on its SM by then:
//
//   piece(n) = tile_ns + ceil(n / splits) step_ns         n key tiles
//   even     = (sum of pieces + idle piece(shortest)) / slots
//   computed = shared(even) + alone(piece(longest) - even)
//   total    = max(computed, read) + min(computed, read) / 32 + merge
//
// K and V are read meanwhile: of tiles that wait for them, the one that computes less is ahead.
// Where lengths differ, short pieces fill the slots that long ones leave: none are idle.
inline std::int64_t estimate_ns(const Work& work,
                                const DeviceLimits& device,
                                const KernelLimits& kernel,
                                std::int64_t splits) {
  const std::int64_t pieces = work.tiles * splits;
  const std::int64_t slots = slots_of(device, kernel);
  const std::int64_t longest = kernel.tile_ns + ceil_div(work.longest, splits) * kernel.step_ns;
  const std::int64_t shortest = kernel.tile_ns + ceil_div(work.shortest, splits) * kernel.step_ns;
  const std::int64_t steps = work.tiles * (work.shortest + work.longest) / 2;
  const std::int64_t busy = pieces * kernel.tile_ns + steps * kernel.step_ns;
  const std::int64_t idle = work.is_mixed ? 0 : (slots - pieces % slots) % slots;
  const std::int64_t even = (busy + idle * shortest) / slots;
  const std::int64_t beside =
      std::min<std::int64_t>(ceil_div(pieces, device.sm_count), kernel.ctas_per_sm);
  const std::int64_t tail = beside_ns(std::max<std::int64_t>(longest - even, 0), 1, kernel);
  const std::int64_t computed = beside_ns(even, beside, kernel) + tail;
  const std::int64_t read = work.read_bytes / kReadBytesPerNs;
  const std::int64_t merge =
      is_cluster(work.grid, device, kernel, splits) ? kClusterMergeNs : merge_ns(work, splits);
  return std::max(computed, read) + std::min(computed, read) / 32 + merge;
}

}  // namespace attn::detail
