// SPDX-License-Identifier: Apache-2.0
// What the threads of a warp or a warpgroup have in common: a leader, a place, registers.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/types.h"

namespace attn::sm90 {

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// The same value in every lane, told to the compiler: branches and addresses made of it stay
// uniform.
__device__ __forceinline__ int warp_uniform(int value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

// A thread within its warpgroup. What is made of its number is recomputed: it is needed rarely.
struct WarpgroupThread {
  uint32_t index;

  __device__ __forceinline__ int warp() const { return recomputed(index) / 32u; }
  __device__ __forceinline__ int lane() const { return recomputed(index) % 32u; }
};

// Hands registers back to the CTA's pool; by all warps of a warpgroup. 0: keeps what it has.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  if constexpr (kRegisters > 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
  }
}

// Takes registers from the pool, and waits until it has them. 0: keeps what it has.
template <int kRegisters>
__device__ __forceinline__ void acquire_registers() {
  if constexpr (kRegisters > 0) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
  }
}

}  // namespace attn::sm90
