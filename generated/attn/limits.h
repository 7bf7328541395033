// SPDX-License-Identifier: Apache-2.0
// What a plan is made for: the device and the kernel.
#pragma once

#include <cstdint>
#include <limits>

#include "attn/kernel_info.h"

namespace attn {

struct DeviceLimits {
  int sm_count = 0;
  std::int64_t max_grid_x = 2147483647;  // 2^31 - 1 on every device since compute capability 3.0
  int shared_per_cta = std::numeric_limits<int>::max();  // bytes that a CTA can opt in to
};

struct KernelLimits {
  int cta_q = 0;        // query rows of a tile
  int cta_s = 0;        // keys of a tile
  int ctas_per_sm = 1;  // occupancy on the device
  int threads = 0;
  int shared_bytes = 0;  // dynamic shared memory of a CTA

  // On a full device: what a query tile costs, and each of its key tiles, in nanoseconds.
  int tile_ns = 2000;
  int step_ns = 1500;

  int packed_heads = 1;   // most query heads of a group that share a tile, a power of two
  int tile_counters = 0;  // ints of AttentionParams::counters that its CTAs take tiles from
  int merged_splits = 1;  // splits of a tile that a cluster of CTAs merges, at most
  int cluster_ctas = 1;   // most of a cluster, which puts parts together; 1: it has no clusters
};

// ctas_per_sm: the occupancy of a kernel that is loaded, or what it was compiled for.
inline KernelLimits limits_of(const KernelInfo& info, int ctas_per_sm) {
  KernelLimits kernel;
  kernel.cta_q = info.cta_q;
  kernel.cta_s = info.cta_s;
  kernel.ctas_per_sm = ctas_per_sm;
  kernel.threads = info.threads;
  kernel.shared_bytes = info.shared_bytes;
  kernel.packed_heads = info.packed_heads;
  kernel.tile_ns = info.tile_ns;
  kernel.step_ns = info.step_ns;
  kernel.tile_counters = info.tile_counters;
  kernel.merged_splits = info.merged_splits;
  kernel.cluster_ctas = info.cluster_ctas;
  return kernel;
}

}  // namespace attn
