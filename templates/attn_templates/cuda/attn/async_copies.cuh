// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies from global to shared memory by a thread, 16 or 4 bytes at a time: the
// instructions that sm_80 has, and every later family.
#pragma once

#include "attn/types.h"

namespace attn {

// As instructions name a place in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(shared), "l"(global)
               : "memory");
}

// Writes zeros where `valid` is false, and does not read the source then.
__device__ __forceinline__ void copy_async_16_or_zero(uint32_t shared,
                                                      const void* global,
                                                      bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Writes zeros where `valid` is false, and does not read the source then.
__device__ __forceinline__ void copy_async_4_or_zero(uint32_t shared,
                                                     const void* global,
                                                     bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

// Closes the group of copies that this thread has issued since the last commit.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending of this thread's groups are still in flight.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace attn
