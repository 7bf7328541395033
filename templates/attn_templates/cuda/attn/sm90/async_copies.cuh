// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies of 16 bytes from global to shared memory.
#pragma once

#include "attn/sm90/barriers.cuh"

namespace attn::sm90 {

// 16 bytes, of which the first `bytes` are read and the others are zero.
__device__ __forceinline__ void copy_async(uint32_t shared, const char* global, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(bytes)
               : "memory");
}

// Closes the calling thread's group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until all of the calling thread's groups but the last kOpen are complete.
template <int kOpen>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kOpen) : "memory");
}

}  // namespace attn::sm90
