// SPDX-License-Identifier: Apache-2.0
// Which kernels are taken on devices of 99 and of 227 KiB of shared memory, of a table of two tiles,
// and on devices of other capabilities, and how far they are split in a workspace. The CUDA runtime is that of one_device.h and of this
// file: no GPU is asked.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>

#include "attn/dispatch.h"
#include "one_device.h"

namespace {

int shared_kib = 0;  // of a CTA, on the device
int major = 8;       // of its compute capability

using attn::KernelInfo;
using attn::detail::KernelRow;

template <int kKib>
KernelInfo describe() {
  KernelInfo info;
  info.name = kKib > 99 ? "large" : "small";
  info.shared_bytes = kKib * 1024;
  return info;
}

template <int kKib>
KernelInfo prepare() {
  if (kKib > shared_kib) {
    throw attn::Error(attn::Status::kNotSupported, "", "no room for the large tile");
  }
  return describe<kKib>();
}

// The large tile is the faster one, where it fits.
template <int kKib>
std::int64_t rank(const void*, int, const attn::DeviceLimits& device) {
  return kKib * 1024 > device.shared_per_cta ? attn::detail::kUnfit : 1000 - kKib;
}

constexpr int kLikedSplits = 7;
constexpr int kSplitBytes = 1000;

attn::Plan plan(const void* any) {
  const auto& params = *static_cast<const attn::AttentionParams<half>*>(any);
  attn::Plan plan;
  plan.split_cnt = params.split_cnt > 0     ? params.split_cnt
                   : params.max_split_k > 0 ? std::min(params.max_split_k, kLikedSplits)
                                            : kLikedSplits;
  plan.workspace_bytes = plan.split_cnt > 1 ? kSplitBytes * plan.split_cnt : 0;
  return plan;
}

template <int kKib>
KernelRow row() {
  KernelRow row{};
  row.family = attn::detail::family_of(attn::arch::Sm80{});
  row.describe = describe<kKib>;
  row.prepare = prepare<kKib>;
  row.rank = rank<kKib>;
  row.plan = plan;
  return row;
}

// Of the family that is written for 9.0 alone.
KernelRow hopper_row() {
  KernelRow made = row<96>();
  made.family = attn::detail::family_of(attn::arch::Sm90{});
  made.describe = [] {
    KernelInfo info;
    info.name = "of Hopper";
    return info;
  };
  return made;
}

const char* taken() {
  return attn::detail::kernel_for(attn::detail::Traits{}, 0, nullptr, 0).describe().name;
}

void print_fit(int bytes, int max_split_k, int split_cnt) {
  attn::AttentionParams<half> params;
  params.cache = attn::CacheType::kBlock;
  params.max_split_k = max_split_k;
  params.split_cnt = split_cnt;
  alignas(256) static char workspace[kLikedSplits * kSplitBytes];
  std::printf("%d bytes, max_split_k %d, split_cnt %d: ", bytes, max_split_k, split_cnt);
  try {
    const attn::Plan plan = attn::fit_workspace(params, workspace, static_cast<std::size_t>(bytes));
    std::printf("%d splits, max_split_k %d\n", plan.split_cnt, params.max_split_k);
  } catch (const attn::Error& error) {
    std::printf("%s\n", error.what());
  }
}

}  // namespace

attn::detail::KernelTable attn::detail::kernel_table() {
  static const KernelRow rows[] = {row<96>(), row<160>(), hopper_row()};
  return {rows, 3};
}

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = shared_kib * 1024, cudaSuccess;
    default:
      return *value = 100, cudaSuccess;
  }
}

int main() {
  for (const int kib : {99, 227}) {
    shared_kib = kib;
    std::printf("%d KiB: prepared", kib);
    for (const KernelInfo& info : attn::prepare(0)) {
      std::printf(" %s", info.name);
    }
    std::printf(", taken %s\n", taken());
  }
  for (const int number : {8, 9, 10}) {
    major = number;
    std::printf("capability %d.0: %s\n", number, taken());
  }
  major = 8;
  print_fit(7000, 0, 0);
  print_fit(6999, 0, 0);
  print_fit(2000, 0, 0);
  print_fit(1999, 0, 0);
  print_fit(0, 0, 0);
  print_fit(7000, 5, 0);
  print_fit(4999, 5, 0);
  print_fit(2999, 0, 3);
  return 0;
}
