// SPDX-License-Identifier: Apache-2.0
// The tensor memory accelerator: boxes of a tensor to and from shared memory, by one thread.
#pragma once

#include "attn/sm90/barriers.cuh"
#include "attn/types.h"

namespace attn::sm90 {

// How long L2 should keep what a load brings in.
enum class CacheHint : uint64_t {
  kEvictFirst = 0x12F0000000000000,  // read once: Q
  kEvictLast = 0x14F0000000000000,   // read again by other CTAs: K and V
};

// Element coordinates of a box in a tensor [tokens][heads][columns]. What lies outside the tensor
// is read as zero and not written.
struct BoxOrigin {
  int column;
  int head;
  int token;
};

// The same in a pool [blocks][rows][heads][columns].
struct BlockBoxOrigin {
  int column;
  int head;
  int row;
  int block;
};

// Reads a box; its bytes count towards the current phase of `full`.
__device__ __forceinline__ void load_box(
    void* shared, const TensorMap& map, Barrier& full, BoxOrigin at, CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;\n" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(&full)),
      "r"(at.column),
      "r"(at.head),
      "r"(at.token),
      "l"(static_cast<uint64_t>(hint))
      : "memory");
}

__device__ __forceinline__ void load_box(
    void* shared, const TensorMap& map, Barrier& full, BlockBoxOrigin at, CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;\n" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(&full)),
      "r"(at.column),
      "r"(at.head),
      "r"(at.row),
      "r"(at.block),
      "l"(static_cast<uint64_t>(hint))
      : "memory");
}

// Reads bytes that lie one behind the other, as a box does; addresses and size are multiples of 16.
__device__ __forceinline__ void load_bytes(void* shared,
                                           const void* global,
                                           int bytes,
                                           Barrier& full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared_address(shared)),
      "l"(global),
      "r"(bytes),
      "r"(shared_address(&full))
      : "memory");
}

// Writes a box; it belongs to the calling thread's open group of stores.
__device__ __forceinline__ void store_box(const TensorMap& map, uint32_t shared, BoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(
          &map),
      "r"(shared),
      "r"(at.column),
      "r"(at.head),
      "r"(at.token)
      : "memory");
}

// Closes the calling thread's group of stores.
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

// Waits until the calling thread's stores have read shared memory, which may then be written again.
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

// Fetches a map itself ahead of its first use.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

}  // namespace attn::sm90
