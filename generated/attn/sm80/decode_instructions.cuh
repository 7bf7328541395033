// SPDX-License-Identifier: Apache-2.0
// Instructions of the decode kernel that have no C++ spelling, one function each.
#pragma once

#include "attn/sm80/instructions.cuh"

namespace attn::sm80 {

// --- registers ---------------------------------------------------------------------------------

// The same value, which the compiler then keeps: to save a register it would find it again at every
// use.
__device__ __forceinline__ uint32_t kept(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// --- memory -------------------------------------------------------------------------------------

// The cache policy of copies that L2 need not keep.
__device__ __forceinline__ uint64_t evict_first_policy() {
  // What createpolicy.fractional.L2::evict_first leaves for all lines, on devices from 8.0 to 12.0;
  // ptxas makes six instructions of it, at every use.
  return 0x12f0000000000000;
}

__device__ __forceinline__ void copy_async_16_hinted(uint32_t shared,
                                                     const void* global,
                                                     uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global),
               "l"(policy)
               : "memory");
}

// For rows of 64 bytes or less, where the other half of a line may be another head's.
__device__ __forceinline__ void copy_async_16_of_64(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::64B [%0], [%1], 16;\n" ::"r"(shared), "l"(global)
               : "memory");
}

// Asks L2 for the line that holds an address.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}

// What L2 holds, or 0 without asking for it: in no case is there a branch, which loads behind it
// would wait for.
__device__ __forceinline__ int load_past_l1_if(bool is_wanted, const int* global) {
  int value;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %1, 0;\n"
      "mov.s32 %0, 0;\n"
      "@wanted ld.global.cg.s32 %0, [%2];\n"
      "}\n"
      : "=r"(value)
      : "r"(static_cast<int>(is_wanted)), "l"(global)
      : "memory");
  return value;
}

// Counts up to `last`, then wraps to 0. What this thread has written, and what it has seen of other
// threads of its warp, is visible to whoever counts later.
__device__ __forceinline__ unsigned count_arrival(int* counter, unsigned last) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;\n"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before;
}

// --- fragments ----------------------------------------------------------------------------------

// An 8x8 matrix of 16-bit elements, transposed across the warp.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t row) {
  uint32_t column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(column) : "r"(row));
  return column;
}

}  // namespace attn::sm80
