// SPDX-License-Identifier: Apache-2.0
// From the accumulators of a warp to global memory: 16 rows, by TMA where all of them exist.
#pragma once

#include "attn/sm90/packed_rows.cuh"
#include "attn/sm90/softmax.cuh"
#include "attn/sm90/tma.cuh"
#include "attn/sm90/work.cuh"

namespace attn::sm90 {

// Where the 16 rows of a warp go.
struct OutputRows {
  int token;  // row of `out` that takes the first of them
  int head;   // of the first of them
  int count;  // rows that exist; 16 or more: all
  int split;  // kWholeRow, or the slot of the workspace
};

// Panels of 16 rows in shared memory, `stride` bytes apart.
struct StagedPanels {
  char* first;
  int stride;
};

// Rounds columns of the output, divided by their row's sum:  packed[i] = columns 2 i and 2 i + 1 of
// the list.
template <class T, int kFirst, int kPacked, int kOutput>
__device__ __forceinline__ void pack_columns(uint32_t (&packed)[kPacked],
                                             const float (&output)[kOutput],
                                             float inverse_first,
                                             float inverse_second) {
#pragma unroll
  for (int i = 0; i < kPacked; ++i) {
    const float inverse = i % 2 == 0 ? inverse_first : inverse_second;
    packed[i] = pack(output[kFirst + 2 * i] * inverse, output[kFirst + 2 * i + 1] * inverse, T{});
  }
}

// Writes packed accumulators to panels in the swizzled layout that TMA reads: 16 columns at a time,
// lane l pointing to row l % 16, half l / 16 of them.
template <int kPacked>
__device__ __forceinline__ void stage_columns(StagedPanels panels,
                                              const uint32_t (&packed)[kPacked],
                                              int lane) {
  const int row = lane % 16;
  const uint32_t row_address = shared_address(panels.first) + row * 128;
#pragma unroll
  for (int i = 0; i < kPacked; i += 4) {
    const int chunk = i / 2 + lane / 16;
    const uint32_t address = row_address + i / 16 * panels.stride + ((chunk % 8 ^ row % 8) << 4);
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address),
        "r"(packed[i]),
        "r"(packed[i + 1]),
        "r"(packed[i + 2]),
        "r"(packed[i + 3])
        : "memory");
  }
}

// Sends kPanels staged panels to columns first_column.. of the rows. By the whole warp; lane 0 owns
// the stores and has to wait for them. Rows that do not exist belong to the next sequence, or to
// the next KV head, and TMA would write them: then the warp copies.
template <class Traits, int kPanels>
__device__ __forceinline__ void send_panels(const Arguments<typename Traits::T>& arguments,
                                            StagedPanels panels,
                                            int first_column,
                                            OutputRows rows,
                                            int lane) {
  using T = typename Traits::T;
  // In uniform registers, which TMA takes them from.
  const uint32_t staged = warp_uniform(shared_address(panels.first));
  const int token = warp_uniform(rows.token);
  const int head = warp_uniform(rows.head);
  fence_async_proxy();
  __syncwarp();  // the warp's rows are complete, for TMA and for each other
  const PackedRows packed = packed_rows(arguments);
  if (rows.count >= Traits::kWarpRows && packed.is_dense()) {
    if (lane == 0) {
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        store_box(arguments.out,
                  staged + panel * panels.stride,
                  {first_column + panel * Traits::kPanelColumns, head, token});
      }
      commit_stores();
    }
    return;
  }
  for (int chunk = lane; chunk < kPanels * Traits::kWarpRows * 8; chunk += 32) {
    const int panel = chunk / (Traits::kWarpRows * 8);
    const int row = chunk / 8 % Traits::kWarpRows;
    const int column = first_column + panel * Traits::kPanelColumns + chunk % 8 * 8;
    if (row < rows.count && packed.has_head(row) && column < Traits::kHeadDimV) {
      // out [token_num, num_heads, head_dim_v]
      const int64_t token = rows.token + packed.token(row);
      const int64_t out_row = token * arguments.params.num_heads + rows.head + packed.head(row);
      T* const out = arguments.params.out + out_row * Traits::kHeadDimV + column;
      *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(
          panels.first + panel * panels.stride + row * 128 + ((chunk % 8 ^ row % 8) << 4));
    }
  }
  __syncwarp();  // nobody overwrites a row that another lane still copies
}

// Writes the lse of the rows that this thread holds.
template <class Traits, class Softmax>
__device__ __forceinline__ void store_lse(const Arguments<typename Traits::T>& arguments,
                                          const Softmax& softmax,
                                          OutputRows rows,
                                          int lane) {
  const AttentionParams<typename Traits::T>& params = arguments.params;
  if (params.lse == nullptr) {
    return;
  }
  const PackedRows packed = packed_rows(arguments);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane / 4 + 8 * h;
    if (lane % 4 == 0 && row < rows.count && packed.has_head(row)) {
      // lse [num_heads, token_num]
      const int64_t head = rows.head + packed.head(row);
      params.lse[head * params.token_num + rows.token + packed.token(row)] = softmax.log_sum_exp(h);
    }
  }
}

// Writes what one split of the keys leaves: the unnormalised output, and (reference in log2 units,
// sum).
template <class Traits, class Softmax, int kOutput>
__device__ __forceinline__ void store_partial(const Arguments<typename Traits::T>& arguments,
                                              const Softmax& softmax,
                                              const float (&output)[kOutput],
                                              OutputRows rows,
                                              int lane) {
  const AttentionParams<typename Traits::T>& params = arguments.params;
  const PackedRows packed = packed_rows(arguments);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane / 4 + 8 * h;
    if (row < rows.count && packed.has_head(row)) {
      // [splits, token_num, num_heads]
      const int64_t token =
          static_cast<int64_t>(rows.split) * params.token_num + rows.token + packed.token(row);
      const int64_t partial = token * params.num_heads + rows.head + packed.head(row);
      float* const out = params.partial_O + partial * Traits::kHeadDimV + lane % 4 * 2;
#pragma unroll
      for (int i = 2 * h; i < kOutput; i += 4) {
        if (i / 4 * 8 < Traits::kHeadDimV) {
          *reinterpret_cast<float2*>(out + i / 4 * 8) = {output[i], output[i + 1]};
        }
      }
      if (lane % 4 == 0) {
        *reinterpret_cast<float2*>(params.partial_ML + partial * 2) = softmax.max_and_sum(h);
      }
    }
  }
}

}  // namespace attn::sm90
