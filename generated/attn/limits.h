// SPDX-License-Identifier: Apache-2.0
// What a plan is made for: the device and the kernel.
#pragma once

#include <cstdint>
#include <limits>

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

  int packed_heads = 1;  // most query heads of a group that share a tile, a power of two
};

}  // namespace attn
