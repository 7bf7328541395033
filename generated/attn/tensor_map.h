// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what TMA has to know of an array, as the driver encodes it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "attn/error.h"
#include "attn/types.h"

namespace attn::detail {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a tensor map of the driver");

// The driver's encoder, without linking the driver.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw Error(
          Status::kNoDevice,
          "",
          "the driver has no cuTensorMapEncodeTiled: update it to one for CUDA 12 or later");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

// 16-bit elements of an argument, innermost dimension first: columns, heads, rows and, for a pool,
// blocks. Strides in elements; that of the columns is 1.
struct MappedRows {
  const char* field;  // named by errors
  const void* data;
  int rank;  // 3, or 4 for a pool
  std::int64_t extents[4];
  std::int64_t strides[3];  // of heads, rows, blocks
};

constexpr unsigned kPanelColumns = 64;  // 128 bytes: the span of the swizzle

// A map of boxes of 64 columns and `box_rows` rows, of `box_heads` heads side by side.
inline TensorMap encode_rows(const MappedRows& rows,
                             bool is_bf16,
                             unsigned box_rows,
                             unsigned box_heads = 1) {
  cuuint64_t extents[4];
  cuuint64_t strides[3];  // bytes
  for (int i = 0; i < rows.rank; ++i) {
    extents[i] = static_cast<cuuint64_t>(std::max<std::int64_t>(rows.extents[i], 1));
  }
  for (int i = 0; i + 1 < rows.rank; ++i) {
    // The stride of a dimension of one element is not used, but must be a legal one.
    const std::int64_t stride = extents[i + 1] > 1 ? rows.strides[i] : rows.extents[0];
    strides[i] = static_cast<cuuint64_t>(stride) * 2;
  }
  const cuuint32_t box[4] = {kPanelColumns, box_heads, box_rows, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map,
      is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      static_cast<cuuint32_t>(rows.rank),
      const_cast<void*>(rows.data),
      extents,
      strides,
      box,
      steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(Status::kInvalidArgument,
                rows.field,
                std::string(rows.field) + " cannot be read by TMA (cuTensorMapEncodeTiled: error " +
                    std::to_string(static_cast<int>(result)) +
                    "): rows must be aligned to 16 bytes and strides must be positive multiples "
                    "of 16 bytes below 2^40");
  }
  TensorMap encoded;
  std::memcpy(&encoded, &map, sizeof(encoded));
  return encoded;
}

}  // namespace attn::detail
