// SPDX-License-Identifier: Apache-2.0
// Which decode calls of a Hopper GPU a linked prefill kernel takes, of a table of one kernel each.
// The CUDA runtime is that of one_device.h and of this file: no GPU is asked.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "attn/dispatch.h"
#include "one_device.h"

namespace {

using attn::KernelInfo;
using attn::detail::KernelRow;
using Params = attn::AttentionParams<half>;

constexpr int kManyTokens = 8;
int major = 9;  // of the device's compute capability

KernelRow decode_row() {
  KernelRow row{};
  row.traits.mode = attn::Mode::kDecode;
  row.family = attn::detail::family_of(attn::arch::Sm80{});
  row.describe = [] { return KernelInfo{}; };
  row.rank = [](const void*, int, const attn::DeviceLimits&) { return std::int64_t{0}; };
  return row;
}

KernelRow prefill_row() {
  KernelRow row{};
  row.traits.mode = attn::Mode::kPrefill;
  row.family = attn::detail::family_of(attn::arch::Sm90{});
  row.describe = [] { return KernelInfo{}; };
  row.many_rows.rank =
      [](const void* params, int max_split_k, const attn::DeviceLimits&, const KernelInfo&) {
        const int tokens = static_cast<const Params*>(params)->token_num;
        return tokens >= kManyTokens && max_split_k != 1 ? 0 : attn::detail::kUnfit;
      };
  return row;
}

// A call that a prefill kernel computes as well.
Params many_rows(attn::CacheType cache) {
  Params params;
  params.token_num = kManyTokens;
  params.cache = cache;
  attn::LinearIteratorParams& linear = params.linear_iter_params;
  linear.token_count = 1;
  linear.k_token_stride = linear.k_head_stride = linear.v_token_stride = linear.v_head_stride = 64;
  attn::PagedIteratorParams& paged = params.paged_iter_params;
  paged.block_count = 1;
  paged.k_block_stride = paged.k_token_stride = paged.k_head_stride = 64;
  paged.v_block_stride = paged.v_token_stride = paged.v_head_stride = 64;
  return params;
}

attn::CacheType linked_cache = attn::CacheType::kPaged;

void print_taker(const char* call, const Params& params, int max_split_k = 0) {
  linked_cache = params.cache;
  const attn::detail::TakenCall taken =
      attn::detail::take(params, attn::Mode::kDecode, max_split_k);
  const bool is_decode = taken.row().traits.mode == attn::Mode::kDecode;
  std::printf("%s: %s\n", call, is_decode ? "decode" : "prefill");
}

}  // namespace

attn::detail::KernelTable attn::detail::kernel_table() {
  static KernelRow rows[] = {decode_row(), prefill_row()};
  for (KernelRow& row : rows) {
    row.traits.cache = linked_cache;
  }
  return {rows, 2};
}

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    default:
      return *value = 100, cudaSuccess;
  }
}

int main() {
  using attn::CacheType;
  for (const CacheType cache : {CacheType::kPaged, CacheType::kBlock, CacheType::kLinear}) {
    print_taker("many rows", many_rows(cache));
  }
  print_taker("without a workspace", many_rows(CacheType::kPaged), 1);

  Params params = many_rows(CacheType::kPaged);
  params.token_num = kManyTokens - 1;
  print_taker("few rows", params);

  params = many_rows(CacheType::kPaged);
  const float sink = 0;
  params.sinks = &sink;
  print_taker("sinks", params);

  params = many_rows(CacheType::kPaged);
  const half row{};
  params.k = &row;
  print_taker("new rows", params);

  params = many_rows(CacheType::kPaged);
  params.paged_iter_params.k_head_stride = 0;
  print_taker("heads that share rows", params);

  params = many_rows(CacheType::kPaged);
  params.paged_iter_params.block_count = 0;
  print_taker("pools of unknown bounds", params);

  for (const CacheType cache : {CacheType::kPaged, CacheType::kLinear}) {
    params = many_rows(cache);
    params.window_size = 1;
    print_taker("a window", params);
  }

  major = 10;
  print_taker("another device", many_rows(CacheType::kPaged));
  return 0;
}
