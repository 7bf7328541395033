// SPDX-License-Identifier: Apache-2.0
// What is known of a kernel: how it was compiled, and what a device says of it.
#pragma once

namespace attn {

struct KernelInfo {
  const char* name = nullptr;  // of the configuration

  // As compiled.
  int threads = 0;  // of a CTA
  int warps = 0;
  int shared_bytes = 0;     // dynamic shared memory of a CTA
  int cta_q = 0;            // query rows of a tile
  int cta_s = 0;            // keys of a tile
  int packed_heads = 1;     // most query heads of a group that share a tile
  int min_ctas_per_sm = 0;  // that an SM has registers for
  int tile_ns = 0;          // what a query tile costs on a full device,
  int step_ns = 0;          // and each of its key tiles
  int tile_counters = 0;    // ints of AttentionParams::counters that its CTAs take tiles from
  int merged_splits = 1;    // splits of a tile that a cluster of CTAs merges, at most
  int cluster_ctas = 1;     // most CTAs of a cluster, of plain decode calls

  // On a device; 0 where none was asked.
  int registers = 0;            // of a thread
  int local_bytes = 0;          // of a thread: spilled registers and arrays
  int static_shared_bytes = 0;  // of a CTA, beside the dynamic ones
  int ctas_per_sm = 0;          // occupancy
  int sm_count = 0;             // multiprocessors
  int ptx_version = 0;          // of the PTX that the code was made from: 90 of compute_90
};

}  // namespace attn
