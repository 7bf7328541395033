// SPDX-License-Identifier: Apache-2.0
// The sm_80 instructions that have no C++ spelling, one function each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/arithmetic.cuh"
#include "attn/async_copies.cuh"
#include "attn/types.h"

namespace attn::sm80 {

// --- fragments: four 8x8 matrices of 16-bit elements --------------------------------------------

// Lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&fragment)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared));
}

// The same, each 8x8 matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&fragment)[4],
                                                          uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared));
}

// --- arithmetic ---------------------------------------------------------------------------------

// c[16 x 8] += a[16 x 16] * b[16 x 8], float accumulators.
//   a: rows g and g + 8, columns 2t, 2t + 1 and 2t + 8, 2t + 9;  b: the same columns of row n = g;
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)   with g = lane / 4, t = lane % 4
__device__ __forceinline__ void multiply_add(
    float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(
    float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace attn::sm80
