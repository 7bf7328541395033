// SPDX-License-Identifier: Apache-2.0
// The API from a file that nvcc compiles.
#include <cstdio>

#include "attn/attention.h"
#include "attn/attn_c.h"

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;

__global__ void scale(half* values, float by) {
  values[threadIdx.x] = __float2half(__half2float(values[threadIdx.x]) * by);
}

int main() {
  const attn::KernelInfo info = attn::describeAttention<Config::Kernel>();
  std::printf("%s %d\n", info.name, attn_kernel_count());
  cudaFuncAttributes attributes{};
  const bool has_device = cudaFuncGetAttributes(&attributes, scale) == cudaSuccess;
  try {
    attn::prepareAttention<Config::Kernel>();
    return has_device ? 0 : 1;
  } catch (const attn::Error& error) {
    return error.code() == attn::Status::kNoDevice && !has_device ? 0 : 1;
  }
}
