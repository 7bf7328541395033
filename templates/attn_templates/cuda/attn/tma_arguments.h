// SPDX-License-Identifier: Apache-2.0
// Host side of the kernels that read by TMA: the tensor maps of a call, and its scheduling.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "attn/config.h"
#include "attn/error.h"
#include "attn/params.h"

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

// Rows of 16-bit elements: [tokens][heads][columns], the innermost dense, strides in elements.
struct MappedRows {
  const char* field;  // named by errors
  const void* data;
  int columns;
  int heads;
  std::int64_t tokens;
  std::int64_t head_stride;
  std::int64_t token_stride;
};

constexpr unsigned kPanelColumns = 64;  // 128 bytes: the span of the swizzle

// A map that reads or writes boxes of 64 columns of one head of `box_tokens` rows.
inline TensorMap encode_rows(const MappedRows& rows, bool is_bf16, unsigned box_tokens) {
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(rows.columns),
                              static_cast<cuuint64_t>(rows.heads),
                              static_cast<cuuint64_t>(std::max<std::int64_t>(rows.tokens, 1))};
  // Bytes; the stride of a dimension of one element is not used, but must be a legal one.
  const cuuint64_t strides[2] = {
      static_cast<cuuint64_t>(rows.heads > 1 ? rows.head_stride : rows.columns) * 2,
      static_cast<cuuint64_t>(rows.tokens > 1 ? rows.token_stride : rows.columns) * 2};
  const cuuint32_t box[3] = {kPanelColumns, 1, box_tokens};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map,
      is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      3,
      const_cast<void*>(rows.data),
      dims,
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

// Heads that are scheduled together. Under a causal mask the longest tiles of a section come first,
// so a section is as many heads as have their K and V in 32 MiB of L2, and at least 16, so that few
// CTAs share a head; without a mask, the heads of one group.
template <class T>
int section_of(const AttentionParams<T>& params, const TilePlan& plan) {
  constexpr std::int64_t kL2Bytes = 32 << 20;
  const std::int64_t columns = static_cast<std::int64_t>(params.num_heads) *
                               (plan.tiles_per_sequence > 0 ? params.batch_size : 1);
  const std::int64_t group = params.num_heads / params.num_kv_heads;
  std::int64_t section = group;
  if (params.causal) {
    const std::int64_t head_bytes = static_cast<std::int64_t>(params.max_k_len) *
                                    (params.size_per_head + params.size_per_head_v) * 2;
    section = std::max<std::int64_t>(16, kL2Bytes / std::max<std::int64_t>(head_bytes, 1) * group);
  }
  return static_cast<int>(std::max<std::int64_t>(1, std::min(section, columns)));
}

// The maps of a call. K and V of a cache that is not linear are looked up by address instead.
template <class Config>
void encode_maps(TmaArguments<typename Config::T>& arguments) {
  const auto& params = arguments.params;
  const bool is_bf16 = std::is_same_v<typename Config::T, __nv_bfloat16>;
  constexpr unsigned kCtaS = TileOf<Config>::kCtaS;
  arguments.q = encode_rows({"q",
                             params.q,
                             Config::kHeadDim,
                             params.num_heads,
                             params.token_num,
                             Config::kHeadDim,
                             params.stride},
                            is_bf16,
                            64);
  arguments.out = encode_rows({"out",
                               params.out,
                               Config::kHeadDimV,
                               params.num_heads,
                               params.token_num,
                               Config::kHeadDimV,
                               static_cast<std::int64_t>(params.num_heads) * Config::kHeadDimV},
                              is_bf16,
                              16);
  if constexpr (Config::kCache == CacheType::kLinear) {
    const LinearIteratorParams& linear = params.linear_iter_params;
    if (linear.token_count <= 0 && params.max_k_len > 0) {
      throw Error(Status::kInvalidArgument,
                  "linear_iter_params.token_count",
                  "linear_iter_params.token_count is " + std::to_string(linear.token_count) +
                      ": give the rows that K and V have, a tensor map must know its bounds");
    }
    if (linear.token_count > 0) {
      arguments.k = encode_rows({"linear_iter_params.k",
                                 linear.k,
                                 Config::kHeadDim,
                                 params.num_kv_heads,
                                 linear.token_count,
                                 linear.k_head_stride,
                                 linear.k_token_stride},
                                is_bf16,
                                kCtaS);
      arguments.v = encode_rows({"linear_iter_params.v",
                                 linear.v,
                                 Config::kHeadDimV,
                                 params.num_kv_heads,
                                 linear.token_count,
                                 linear.v_head_stride,
                                 linear.v_token_stride},
                                is_bf16,
                                kCtaS);
    }
  }
}

// The part of the arguments that follows the plan.
template <class Config>
void complete(TmaArguments<typename Config::T>& arguments) {
  AttentionParams<typename Config::T>& params = arguments.params;
  params.size_per_head_v = Config::kHeadDimV;
  if (params.counters == nullptr) {
    throw Error(
        Status::kInvalidArgument,
        "counters",
        "counters is null: kernels of this family take their tiles from a counter; give one "
        "int of device memory per stream, zeroed once (it resets itself)");
  }
  arguments.section = section_of(params, arguments.plan);
  encode_maps<Config>(arguments);
}

}  // namespace attn::detail
