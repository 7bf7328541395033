// SPDX-License-Identifier: Apache-2.0
// Chooses a linked kernel by the params of a call and by the device, or says what is missing.
#include "attn/dispatch.h"

#include <cuda_runtime_api.h>

#include <limits>
#include <string>
#include <vector>

#include "attn/dispatch_refusals.h"
#include "attn/launch.h"

namespace attn {

namespace detail {

namespace {

constexpr int kAnyDevice = -1;

// Of the rows that fit, the first one of the latest family; null where none does.
const KernelRow* find_row(const Traits& traits, int capability) {
  const KernelRow* found = nullptr;
  for (const KernelRow& row : kernel_table()) {
    const bool fits =
        row.traits == traits && (capability == kAnyDevice || row.family.runs_on(capability));
    if (fits && (found == nullptr || row.family.number > found->family.number)) {
      found = &row;
    }
  }
  return found;
}

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(
      cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute", "a device");
  return value;
}

DeviceLimits limits_of(int device) {
  DeviceLimits limits;
  limits.sm_count = attribute_of(device, cudaDevAttrMultiProcessorCount);
  limits.shared_per_cta = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return limits;
}

// Of the rows that differ from this one in their tiles alone, the one of least rank.
const KernelRow& fastest_tile(const KernelRow& first,
                              int device,
                              const void* params,
                              int max_split_k) {
  const DeviceLimits limits = limits_of(device);
  const KernelRow* fastest = &first;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (const KernelRow& row : kernel_table()) {
    if (row.traits == first.traits && row.family.number == first.family.number) {
      const std::int64_t rank = row.rank(params, max_split_k, limits);
      if (rank < least) {
        fastest = &row;
        least = rank;
      }
    }
  }
  return *fastest;
}

}  // namespace

int capability_of(int device) {
  return 10 * attribute_of(device, cudaDevAttrComputeCapabilityMajor) +
         attribute_of(device, cudaDevAttrComputeCapabilityMinor);
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice", "this thread");
  return device;
}

const KernelRow& kernel_for(const Traits& traits) {
  const KernelRow* const row = find_row(traits, kAnyDevice);
  if (row == nullptr) {
    refuse_traits(traits);
  }
  return *row;
}

const KernelRow& kernel_for(const Traits& traits, int device, const void* params, int max_split_k) {
  const KernelRow& any = kernel_for(traits);
  const int capability = capability_of(device);
  const KernelRow* const row = find_row(traits, capability);
  if (row == nullptr) {
    refuse_device(any, device, capability);
  }
  return fastest_tile(*row, device, params, max_split_k);
}

int checked_device(int device) {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount", "this process");
  if (device < 0 || device >= count) {
    throw Error(Status::kInvalidArgument,
                "device",
                "device is " + std::to_string(device) + ": this process sees " +
                    std::to_string(count) + ", counted from 0 (CUDA_VISIBLE_DEVICES)");
  }
  return device;
}

DeviceScope::DeviceScope(int device) : former_(current_device()) {
  check_cuda(cudaSetDevice(checked_device(device)), "cudaSetDevice", "this thread");
}

DeviceScope::~DeviceScope() { cudaSetDevice(former_); }

template <class T>
void dispatch(const AttentionParams<T>& params, Mode mode) {
  if (is_empty(params)) {
    kernel_for(traits_of(params, mode));
  } else {
    kernel_here(params, mode, launched_splits(params)).invoke(&params);
  }
}

template <class T>
Plan plan_dispatch(const AttentionParams<T>& params, Mode mode) {
  return kernel_for(params, mode, current_device(), params.max_split_k).plan(&params);
}

template <class T>
KernelInfo find_kernel(const AttentionParams<T>& params, Mode mode) {
  return kernel_for(params, mode, current_device(), params.max_split_k).prepare();
}

template __attribute__((visibility("default"))) void dispatch(const AttentionParams<half>&, Mode);
template __attribute__((visibility("default"))) void dispatch(const AttentionParams<__nv_bfloat16>&,
                                                              Mode);
template __attribute__((visibility("default"))) Plan plan_dispatch(const AttentionParams<half>&,
                                                                   Mode);
template __attribute__((visibility("default"))) Plan
plan_dispatch(const AttentionParams<__nv_bfloat16>&, Mode);
template __attribute__((visibility("default"))) KernelInfo find_kernel(const AttentionParams<half>&,
                                                                       Mode);
template __attribute__((visibility("default"))) KernelInfo
find_kernel(const AttentionParams<__nv_bfloat16>&, Mode);

}  // namespace detail

__attribute__((visibility("default"))) std::vector<KernelInfo> prepare(int device) {
  const detail::DeviceScope scope(device);
  const int capability = detail::capability_of(device);
  const int shared_per_cta = detail::limits_of(device).shared_per_cta;
  std::vector<KernelInfo> infos;
  for (const detail::KernelRow& row : detail::kernel_table()) {
    if (row.family.runs_on(capability) && row.describe().shared_bytes <= shared_per_cta) {
      infos.push_back(row.prepare());
    }
  }
  if (infos.empty()) {
    throw Error(Status::kNoKernelImage,
                "device",
                "device " + std::to_string(device) + " has compute capability " +
                    detail::dotted(capability) + ": none of the " +
                    std::to_string(detail::kernel_table().count) +
                    " linked kernels runs there; emit and link kernels for this device");
  }
  return infos;
}

__attribute__((visibility("default"))) std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> infos;
  for (const detail::KernelRow& row : detail::kernel_table()) {
    infos.push_back(row.describe());
  }
  return infos;
}

}  // namespace attn
