// SPDX-License-Identifier: Apache-2.0
// The warpgroup matrix instruction (wgmma): four warps multiply a 64-row tile, asynchronously.
//
// wgmma_widths.cuh has the instruction itself, once for each width N:
//
//   multiply_shared<T>(d, a, b, accumulate)      D[64 x N] (+)= A[64 x 16] * B[N x 16]^T
//   multiply_registers<T>(d, a, b, accumulate)   D[64 x N] (+)= A[64 x 16] * B[16 x N]; A in
//                                                registers
//
// Tiles in shared memory are panels of 64 columns: a panel is [rows][64] of 16-bit elements, 128
// bytes a row, and the 16-byte chunk c of row r lies at c ^ (r % 8), as TMA writes it with the
// 128-byte swizzle. A panel starts at a multiple of 1024 bytes.
//
// Registers of one thread, with g = lane / 4, t = lane % 4 and warp = 0..3 within the warpgroup:
//   d[4 * j + 2 * i + e]   row 16 * warp + g + 8 * i, column 8 * j + 2 * t + e
//   a[0..3]                rows g, g + 8, g, g + 8; columns 2t, 2t, 2t + 8, 2t + 8 and the next
// so two neighbouring accumulators, packed, are an A register: P needs no shuffle on its way from
// Q.K to P.V.
#pragma once

#include "attn/sm90/wgmma_widths.cuh"
#include "attn/types.h"

namespace attn::sm90 {

// --- ordering -----------------------------------------------------------------------------------

// Before the first wgmma after ordinary code has touched its registers.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Closes the group of products issued since the last commit.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses of registers that a running product owns across this
// point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(registers[i])::"memory");
  }
}

// --- operands in shared memory ------------------------------------------------------------------

// The low word of a matrix descriptor, which is all that varies (wgmma_widths.cuh): a step along a
// tile is one 32-bit addition.

// Q and K: the product runs along the columns of a row, 16 at a time, and never leaves a panel.
__device__ __forceinline__ uint32_t row_descriptor(uint32_t shared) {
  return (shared >> 4) | (1u << 16);
}

// V: the product runs down the rows, 16 at a time, and its width covers several panels.
__device__ __forceinline__ uint32_t column_descriptor(uint32_t shared, uint32_t panel_bytes) {
  return (shared >> 4) | ((panel_bytes >> 4) << 16);
}

// What to add to a row_descriptor for columns 16 * step .. 16 * step + 15.
__device__ __forceinline__ constexpr uint32_t row_step(int step, uint32_t panel_bytes) {
  return (step % 4 * 32 + step / 4 * panel_bytes) >> 4;
}

// What to add to a column_descriptor for rows 16 * step .. 16 * step + 15.
__device__ __forceinline__ constexpr uint32_t column_step(int step) {
  return (step * 16 * 128) >> 4;
}

}  // namespace attn::sm90
