// SPDX-License-Identifier: Apache-2.0
// Chooses a linked kernel by the params of a call and by the device, or says what is missing.
#include "attn/dispatch.h"

#include <cuda_runtime_api.h>

#include <limits>
#include <string>
#include <vector>

#include "attn/dispatch_refusals.h"
#include "attn/launch.h"
#include "attn/plan_within.h"

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

// The prefill kernel that may take a decode call of many rows in the place of a decode kernel; null
// where none is linked that does.
const KernelRow* many_rows_kernel(const KernelRow& decode,
                                  int device,
                                  const void* params,
                                  int max_split_k) {
  Traits traits = decode.traits;
  traits.mode = Mode::kPrefill;
  const KernelInfo info = decode.describe();
  const DeviceLimits limits = limits_of(device);
  const int capability = capability_of(device);
  const KernelRow* found = nullptr;
  std::int64_t least = kUnfit;
  for (const KernelRow& row : kernel_table()) {
    if (row.traits == traits && row.many_rows.rank != nullptr && row.family.runs_on(capability)) {
      const std::int64_t rank = row.many_rows.rank(params, max_split_k, limits, info);
      if (rank < least) {
        found = &row;
        least = rank;
      }
    }
  }
  return found;
}

// TMA reads only where rows lie apart.
template <class... Strides>
bool lie_apart(Strides... strides) {
  return ((strides > 0) && ...);
}

// Whether a decode call is one that a prefill kernel computes as well: sinks and new rows are of
// decode kernels, and so are windows over linear rows, in front of which prefill has rows to clear.
// TMA reads a cache of which it is told the bounds.
template <class T>
bool may_go_to_prefill(const AttentionParams<T>& params) {
  if (params.sinks != nullptr || params.k != nullptr || params.v != nullptr) {
    return false;
  }
  switch (params.cache) {
    case CacheType::kLinear: {
      const LinearIteratorParams& linear = params.linear_iter_params;
      return params.window_size == 0 && linear.token_count > 0 &&
             lie_apart(linear.k_token_stride,
                       linear.k_head_stride,
                       linear.v_token_stride,
                       linear.v_head_stride);
    }
    case CacheType::kPaged: {
      const PagedIteratorParams& paged = params.paged_iter_params;
      return paged.block_count > 0 && lie_apart(paged.k_block_stride,
                                                paged.k_token_stride,
                                                paged.k_head_stride,
                                                paged.v_block_stride,
                                                paged.v_token_stride,
                                                paged.v_head_stride);
    }
    default:
      return true;
  }
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
TakenCall take(const AttentionParams<T>& params, Mode mode, int max_split_k) {
  const int device = current_device();
  const KernelRow& row = kernel_for(params, mode, device, max_split_k);
  const KernelRow* const prefill = mode == Mode::kDecode && may_go_to_prefill(params)
                                       ? many_rows_kernel(row, device, &params, max_split_k)
                                       : nullptr;
  return prefill == nullptr ? TakenCall(row) : TakenCall(*prefill, row);
}

template <class T>
void dispatch(const AttentionParams<T>& params, Mode mode) {
  if (is_empty(params)) {
    kernel_for(traits_of(params, mode));
  } else {
    take_checked(params, mode, launched_splits(params)).invoke(&params);
  }
}

template <class T>
Plan plan_dispatch(const AttentionParams<T>& params, Mode mode) {
  return take(params, mode, params.max_split_k).plan(&params);
}

template <class T>
PlannedCall plan_within(AttentionParams<T>& params, Mode mode, std::size_t bytes) {
  const TakenCall call = take(params, mode, params.max_split_k);
  const Plan plan = call.plan(&params);
  const bool is_asked = params.split_cnt != 0 || params.split_size != 0;
  if (workspace_size(plan) <= bytes || is_asked || params.max_split_k == 1) {
    return {call, plan};
  }
  // Rows of parts are those of the call, whatever its tile: a kernel that is faster with fewer
  // splits finds room, too.
  AttentionParams<T> bounded = params;
  params.max_split_k =
      splits_that_fit(static_cast<std::int64_t>(bytes), params.max_split_k, [&](int bound) {
        bounded.max_split_k = bound;
        return call.plan(&bounded);
      });
  const TakenCall fewer = take(params, mode, params.max_split_k);
  return {fewer, fewer.plan(&params)};
}

template <class T>
Plan fit_workspace(AttentionParams<T>& params, Mode mode, std::size_t bytes) {
  return plan_within(params, mode, bytes).plan;
}

template <class T>
KernelInfo find_kernel(const AttentionParams<T>& params, Mode mode) {
  return take(params, mode, params.max_split_k).row().prepare();
}

template TakenCall take(const AttentionParams<half>&, Mode, int);
template TakenCall take(const AttentionParams<__nv_bfloat16>&, Mode, int);
template PlannedCall plan_within(AttentionParams<half>&, Mode, std::size_t);
template PlannedCall plan_within(AttentionParams<__nv_bfloat16>&, Mode, std::size_t);

template __attribute__((visibility("default"))) void dispatch(const AttentionParams<half>&, Mode);
template __attribute__((visibility("default"))) void dispatch(const AttentionParams<__nv_bfloat16>&,
                                                              Mode);
template __attribute__((visibility("default"))) Plan plan_dispatch(const AttentionParams<half>&,
                                                                   Mode);
template __attribute__((visibility("default"))) Plan
plan_dispatch(const AttentionParams<__nv_bfloat16>&, Mode);
template __attribute__((visibility("default"))) Plan fit_workspace(AttentionParams<half>&,
                                                                   Mode,
                                                                   std::size_t);
template __attribute__((visibility("default"))) Plan fit_workspace(AttentionParams<__nv_bfloat16>&,
                                                                   Mode,
                                                                   std::size_t);
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
