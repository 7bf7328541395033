// SPDX-License-Identifier: Apache-2.0
// Attention kernels from C++. This header needs no CUDA compiler; the kernels are in the units that
// it is linked with.
//
//   using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;
//   attn::AttentionParams<half> params;                 // see attn/params.h
//   attn::invokeAttention<Config::Kernel>(params);      // on params.stream; throws attn::Error
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

#include "attn/config.h"
#include "attn/error.h"
#include "attn/plan.h"

namespace attn {

// What the current device says of a kernel.
struct KernelInfo {
  const char* name;  // the entry symbol
  int threads;       // of a CTA
  int shared_bytes;  // dynamic shared memory of a CTA
  int registers;     // of a thread
  int local_bytes;   // of a thread: spilled registers and arrays
  int ctas_per_sm;   // occupancy
  int sm_count;      // multiprocessors of the device
  int cta_q;         // query rows of a tile
  int cta_s;         // keys of a tile
};

// Runs attention on the current device: plans it, launches the kernel and, where keys were split,
// the reduction. Nothing is copied to the host and nothing waits, so a call may be captured in a
// CUDA graph once prepare() or an earlier call has loaded the kernel. Throws Error, which names the
// field; then nothing was launched.
template <class Kernel>
void invokeAttention(const typename Kernel::ParamType& params);

// Loads the kernel and its reduction on the current device, and asks for the shared memory they
// need.
template <class Kernel>
KernelInfo prepareAttention();

// How invokeAttention would cut a call, on the current device. Reads no device memory.
template <class Kernel>
Plan planAttention(const typename Kernel::ParamType& params);

// Bytes of partial_O and partial_ML together for a plan, 0 when nothing is split. partial_O is the
// start of the workspace, aligned to 256 bytes; partial_ML starts plan.partial_ML_offset bytes
// behind it.
inline std::size_t workspace_size(const Plan& plan) {
  return static_cast<std::size_t>(plan.workspace_bytes);
}

// Points the params to a workspace of workspace_size(plan) bytes.
template <class T>
void set_workspace(AttentionParams<T>& params, const Plan& plan, void* workspace) {
  char* const base = static_cast<char*>(workspace);
  params.partial_O = reinterpret_cast<float*>(base);
  params.partial_ML = reinterpret_cast<float*>(base + plan.partial_ML_offset);
  params.max_split_k = plan.split_cnt;
}

}  // namespace attn
