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

// 4 bytes, or zero.
__device__ __forceinline__ void copy_word_async(uint32_t shared, const char* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(exists ? 4 : 0)
               : "memory");
}

// Arrives at the barrier when all copies that the calling thread has issued are complete.
__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(&barrier.word))
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
