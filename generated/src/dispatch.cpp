// SPDX-License-Identifier: Apache-2.0
// Chooses a linked kernel by the params of a call and by the device, or says what is missing.
#include "attn/dispatch.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <limits>
#include <string>

#include "attn/launch.h"

namespace attn {

namespace detail {

namespace {

constexpr int kAnyDevice = -1;

// The words of configuration names; check.h has that of KvType.
using detail::word_of;

const char* word_of(Element element) { return element == Element::kF16 ? "f16" : "bf16"; }

std::string word_of(CacheType cache) {
  switch (cache) {
    case CacheType::kLinear:
      return "linear";
    case CacheType::kBlock:
      return "block";
    case CacheType::kPaged:
      return "paged";
  }
  return std::to_string(static_cast<int>(cache));
}

std::string word_of(Mode mode) {
  switch (mode) {
    case Mode::kPrefill:
      return "prefill";
    case Mode::kDecode:
      return "decode";
    case Mode::kWrite:
      return "write";
  }
  return std::to_string(static_cast<int>(mode));
}

// The name under which attn-codegen emits a kernel for the traits; sm80 kernels run on every device
// from 8.0 on.
std::string name_of(const Traits& traits) {
  std::string name = word_of(traits.mode) + "_sm80_" + word_of(traits.element);
  if (traits.kv_type != KvType::kSame) {
    name += "_" + word_of(traits.kv_type);
  }
  name += "_d" + std::to_string(traits.size_per_head);
  if (traits.size_per_head_v != traits.size_per_head) {
    name += "_v" + std::to_string(traits.size_per_head_v);
  }
  name += "_" + word_of(traits.cache);
  return traits.mode == Mode::kWrite ? name : name + (traits.causal ? "_causal" : "_full");
}

// The first field of AttentionParams in which the two differ, and its value in `a`. "mode" is the
// function that was called, "dtype" the T of AttentionParams<T>.
struct Difference {
  const char* field;
  std::string value;
};

Difference difference(const Traits& a, const Traits& b) {
  if (a.mode != b.mode) {
    return {"mode", word_of(a.mode)};
  }
  if (a.kv_type != b.kv_type) {
    return {"kv_type", word_of(a.kv_type)};
  }
  if (a.cache != b.cache) {
    return {"cache", word_of(a.cache)};
  }
  if (a.causal != b.causal) {
    return {"causal", a.causal ? "true" : "false"};
  }
  if (a.size_per_head != b.size_per_head) {
    return {"size_per_head", std::to_string(a.size_per_head)};
  }
  if (a.size_per_head_v != b.size_per_head_v) {
    return {"size_per_head_v", std::to_string(a.size_per_head_v)};
  }
  return {"dtype", word_of(a.element)};
}

// How far a kernel is from what was asked for: widths by their steps of 16, words by how much would
// have to change around them.
int distance(const Traits& a, const Traits& b) {
  int cost = 0;
  cost += a.mode != b.mode ? 50000 : 0;
  cost += a.causal != b.causal ? 8000 : 0;
  cost += a.element != b.element ? 5000 : 0;
  cost += a.cache != b.cache ? 3000 : 0;
  cost += a.kv_type != b.kv_type ? 2000 : 0;
  cost += std::abs(a.size_per_head - b.size_per_head);
  cost += std::abs(a.size_per_head_v - b.size_per_head_v);
  return cost;
}

[[noreturn]] void refuse_traits(const Traits& traits) {
  const KernelRow* nearest = nullptr;
  for (const KernelRow& row : kernel_table()) {
    if (nearest == nullptr || distance(traits, row.traits) < distance(traits, nearest->traits)) {
      nearest = &row;
    }
  }
  if (nearest == nullptr) {
    throw Error(Status::kNotSupported,
                "",
                "no kernel is linked: emit some, and let ATTN_KERNELS choose them");
  }
  const Difference at_fault = difference(traits, nearest->traits);
  throw Error(Status::kNotSupported,
              at_fault.field,
              std::string(at_fault.field) + " is " + at_fault.value + ": " + name_of(traits) +
                  " is not linked, the nearest is " + nearest->describe().name +
                  "; attn-codegen explain NAME says whether it exists, attn-codegen emit --config "
                  "NAME emits it, and ATTN_KERNELS chooses what is linked");
}

std::string dotted(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

[[noreturn]] void refuse_device(const KernelRow& other, int device, int capability) {
  const Family& family = other.family;
  throw Error(Status::kNoKernelImage,
              "",
              "device " + std::to_string(device) + " has compute capability " + dotted(capability) +
                  ": the linked kernel " + other.describe().name + " runs on " +
                  dotted(family.first) +
                  (family.last == kAnyLater      ? " and later"
                   : family.last == family.first ? " alone"
                                                 : " to " + dotted(family.last)) +
                  "; emit and link one for this device");
}

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
  std::vector<KernelInfo> infos;
  for (const detail::KernelRow& row : detail::kernel_table()) {
    if (row.family.runs_on(capability)) {
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
