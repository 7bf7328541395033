// SPDX-License-Identifier: Apache-2.0
// What launch.h asks of the CUDA runtime, and what it launches. The runtime is one of this file.
#include "attn/launch.h"

#include <cstdio>

namespace {

int device = 0;
int resolved = 0;  // kernels that a device was asked for
std::size_t static_shared = 0;

using attn::detail::Entry;

Entry entry() {
  static const char kernel = 0;
  static const char plain = 0;
  Entry entry;
  entry.name = "a_kernel";
  entry.address = &kernel;
  entry.plain_address = &plain;
  entry.threads = 128;
  entry.shared_bytes = 1000;
  return entry;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDevice(int* current) { return *current = device, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "a reason"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOfSomeKind"; }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  ++resolved;
  attributes->sharedSizeBytes = static_shared;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 1000 : 10;  // 10 SMs
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  const bool is_plain = kernel == entry().plain_address;
  std::printf("opt in: %s, %d bytes\n", is_plain ? "plain" : "any", bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void*, int, size_t) {
  return *count = 2, cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  std::printf("launch: %u CTAs of %u threads, %d attributes\n",
              config->gridDim.x,
              config->blockDim.x,
              static_cast<int>(config->numAttrs));
  return config->gridDim.x > 100 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // extern "C"

int main() {
  // 1. Each device is asked once.
  attn::detail::KernelState state(entry());
  for (const int current : {0, 0, 1, 0}) {
    device = current;
    state.on_current_device();
  }
  std::printf("resolved: %d\n", resolved);

  // 2. Shared memory of both kinds counts.
  static_shared = 1;
  try {
    attn::detail::resolve(entry(), 0);
  } catch (const attn::Error& error) {
    std::printf("%s\n", error.what());
  }

  // 3. A persistent kernel has no more CTAs than the device holds, and takes tiles from a counter.
  attn::Plan plan;
  plan.grid_x = 50;
  for (const bool persistent : {false, true}) {
    Entry kernel = entry();
    kernel.persistent = kernel.is_dependent = persistent;
    const attn::KernelInfo& info = state.on_current_device();
    std::printf("counters: %d\n", attn::detail::describe(kernel).tile_counters);
    attn::detail::launch(kernel, attn::detail::ctas_of(kernel, plan, info), nullptr, 0);
  }

  // 4. What the runtime refuses is told.
  try {
    attn::detail::launch(entry(), 101, nullptr, 0);
  } catch (const attn::Error& error) {
    std::printf("%s\n", error.what());
  }

  // 5. Clusters have a size; those of decode may be anywhere.
  for (const int most : {1, 8}) {
    Entry kernel = entry();
    kernel.cluster_ctas = most;
    attn::detail::launch(kernel, 8, nullptr, 0, 4);
  }
  return 0;
}
