// SPDX-License-Identifier: Apache-2.0
// Attention kernels from C++. This header needs no CUDA compiler; the kernels are in the units that
// it is linked with.
//
//   using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;
//   attn::AttentionParams<half> params;                 // see attn/params.h
//   attn::invokeAttention<Config::Kernel>(params);      // on params.stream; throws attn::Error
//   attn::dispatchAttention(params);                    // the kernel that fits params and device
//   attn::dispatchDecoding(params);                     // likewise, of the decode kernels
//   attn::dispatchWriting(params);                      // new keys and values into the cache
//
// Everything here may be called from any thread, and works on the device that is current there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attn/config.h"
#include "attn/emitted.h"
#include "attn/error.h"
#include "attn/kernel_info.h"
#include "attn/plan.h"

namespace attn {

// Whether a kernel of this configuration was emitted and chosen to be built.
template <class Config>
inline constexpr bool is_emitted = detail::contains<Config>(EmittedKernels{});

namespace detail {

// void, for a kernel that there is.
template <class Kernel>
struct Emitted {
  static_assert(is_emitted<typename Kernel::Config>,
                "this configuration was not emitted: emit it (attn-codegen emit --config NAME), or "
                "let ATTN_KERNELS choose it; attn/emitted.h lists those that there are");
  using type = void;
};

template <class Kernel>
using RequireEmitted = typename Emitted<Kernel>::type;

}  // namespace detail

// Runs attention on the current device: plans it, launches the kernel and, where keys were split,
// the reduction. Nothing is copied to the host and nothing waits, so a call may be captured in a
// CUDA graph once prepare() or an earlier call has loaded the kernel. Kernels of the sm90 family
// take their tiles from plan.counter_cnt ints in params.counters: zeroed once, they reset
// themselves, and belong to one stream at a time. Throws Error, which names the field; then nothing
// was launched.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
void invokeAttention(const typename Kernel::ParamType& params);

// The same for decode kernels (DecodingConfig). A call that has a workspace and is not told how to
// split needs plan.counter_cnt ints in params.counters too. With params.k and v, the rows of the
// new tokens go into the cache first: the same bits as invokeWrite and then this call without them.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
void invokeDecoding(const typename Kernel::ParamType& params);

// Writes new rows of K and V into a cache, quantising them where the kernel does (WriteConfig):
// token i of n of a sequence goes to position k_len - n + i; of cp_size ranks, each is given all
// new rows, and writes its own. Reads k, v, k_stride, v_stride, cu_q_len (of the new tokens),
// cu_k_len (with them), num_kv_heads, cp_rank, cp_size, cp_sharding, cp_chunk and the cache.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
void invokeWrite(const typename Kernel::ParamType& params);

// prepareAttention and describeAttention for cache writers.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
KernelInfo prepareWriter();

template <class Kernel, class = detail::RequireEmitted<Kernel>>
KernelInfo describeWriter();

// How invokeDecoding would cut a call, on the current device. Reads no device memory.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
Plan planDecoding(const typename Kernel::ParamType& params);

// How invokeAttention would cut a call, on the current device. Reads no device memory.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
Plan planAttention(const typename Kernel::ParamType& params);

// Loads the kernel and its reduction on the current device, and asks for the shared memory they
// need.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
KernelInfo prepareAttention();

// What was compiled; asks no device.
template <class Kernel, class = detail::RequireEmitted<Kernel>>
KernelInfo describeAttention();

namespace detail {

// Defined for half and __nv_bfloat16, in src/dispatch.cpp.
template <class T>
void dispatch(const AttentionParams<T>& params, Mode mode);

template <class T>
Plan plan_dispatch(const AttentionParams<T>& params, Mode mode);

template <class T>
KernelInfo find_kernel(const AttentionParams<T>& params, Mode mode);

template <class T>
Plan fit_workspace(AttentionParams<T>& params, Mode mode, std::size_t bytes);

template <class T>
constexpr void require_element() {
  static_assert(has_element<T>(EmittedKernels{}),
                "no kernel of this element type was emitted: half and __nv_bfloat16 can be "
                "(attn-codegen emit --dtype); attn/emitted.h lists the kernels that there are");
}

}  // namespace detail

// invokeAttention with the linked kernel that fits the params (T, causal, cache, kv_type,
// size_per_head, size_per_head_v) and the current device; on Hopper that may be one of the sm90
// family, which takes its tiles from params.counters. Of kernels that differ in their tiles alone
// it is the one that is estimated fastest for the bounds of the call (attn/choose.h). Throws Error
// with kNotSupported where there is none: it names the field, and the nearest kernel that is
// linked.
template <class T>
void dispatchAttention(const AttentionParams<T>& params) {
  detail::require_element<T>();
  detail::dispatch(params, Mode::kPrefill);
}

// The same for one to eight new tokens of each sequence: invokeDecoding with the linked decode
// kernel. Decode is causal, whatever params.causal says, and appends params.k and v where given. On
// Hopper, a linked prefill kernel of the sm90 family takes a call that has many rows of a KV head
// (attn/many_rows.h), a workspace, and neither sinks nor new rows.
template <class T>
void dispatchDecoding(const AttentionParams<T>& params) {
  detail::require_element<T>();
  detail::dispatch(params, Mode::kDecode);
}

// invokeWrite with the linked cache writer that fits the params (T, cache, kv_type, size_per_head,
// size_per_head_v).
template <class T>
void dispatchWriting(const AttentionParams<T>& params) {
  detail::require_element<T>();
  detail::dispatch(params, Mode::kWrite);
}

// The plan of the kernel that dispatchAttention takes, or dispatchDecoding with Mode::kDecode.
template <class T>
Plan plan(const AttentionParams<T>& params, Mode mode = Mode::kPrefill) {
  detail::require_element<T>();
  return detail::plan_dispatch(params, mode);
}

// That kernel, on the current device.
template <class T>
KernelInfo kernel_of(const AttentionParams<T>& params, Mode mode = Mode::kPrefill) {
  detail::require_element<T>();
  return detail::find_kernel(params, mode);
}

// Loads every linked kernel that runs on a device, so that no later call on it pays for that: those
// of its families, but for large tiles that it has not the shared memory for. Returns them as the
// device sees them. The current device stays what it is.
std::vector<KernelInfo> prepare(int device);

// Every linked kernel, as compiled; asks no device.
std::vector<KernelInfo> kernels();

// Bytes of partial_O and partial_ML together, and of the parts of all ranks; 0 when nothing is
// split and there are no others. partial_O is the start of the workspace, aligned to 256 bytes;
// partial_ML starts plan.partial_ML_offset bytes behind it.
inline std::size_t workspace_size(const Plan& plan) {
  return static_cast<std::size_t>(plan.workspace_bytes);
}

template <class T>
std::size_t workspace_size(const AttentionParams<T>& params, Mode mode = Mode::kPrefill) {
  return workspace_size(plan(params, mode));
}

namespace detail {

inline void check_workspace(const Plan& plan, const void* workspace, std::size_t bytes) {
  const std::size_t needed = workspace_size(plan);
  if (needed > 0 && workspace == nullptr) {
    throw Error(Status::kInvalidArgument,
                "workspace",
                "workspace is null: this call is split, or its keys are spread over ranks; give " +
                    std::to_string(needed) + " bytes");
  }
  if (bytes < needed) {
    throw Error(Status::kWorkspaceTooSmall,
                "workspace",
                "workspace has " + std::to_string(bytes) + " bytes, and this call needs " +
                    std::to_string(needed) +
                    " (workspace_size): give more, or split less (fit_workspace, max_split_k)");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
    throw Error(Status::kInvalidArgument,
                "workspace",
                "workspace is address " +
                    std::to_string(reinterpret_cast<std::uintptr_t>(workspace)) +
                    ": it must be a multiple of " + std::to_string(kWorkspaceAlignment) +
                    ", as cudaMalloc gives them");
  }
}

}  // namespace detail

// Points the params to a workspace. Throws Error where `bytes`, its size, is known and less than
// workspace_size(plan).
template <class T>
void set_workspace(AttentionParams<T>& params,
                   const Plan& plan,
                   void* workspace,
                   std::size_t bytes = SIZE_MAX) {
  detail::check_workspace(plan, workspace, bytes);
  char* const base = static_cast<char*>(workspace);
  params.partial_O = reinterpret_cast<float*>(base);
  params.partial_ML = reinterpret_cast<float*>(base + plan.partial_ML_offset);
  params.cp_O = reinterpret_cast<float*>(base + plan.cp_O_offset);
  params.cp_ML = reinterpret_cast<float*>(base + plan.cp_ML_offset);
  params.cp_stride = plan.cp_stride;
  // Splits take more with every one. Ranges of decode are as many in any batch, up to the caller's
  // bound.
  const bool shares_ranges = plan.ranges.ctas > 0 && plan.counter_cnt > 0;
  if (!shares_ranges) {
    params.max_split_k = plan.split_cnt;
  }
}

// Points the params to a workspace of so many bytes, whatever the call would like: where that is
// more, and neither split_cnt nor split_size says how it is split, max_split_k becomes the most
// splits that there is room for, at the least 1. Returns the plan; throws Error where even that
// one, or what was asked for, needs more.
template <class T>
Plan fit_workspace(AttentionParams<T>& params,
                   void* workspace,
                   std::size_t bytes,
                   Mode mode = Mode::kPrefill) {
  detail::require_element<T>();
  const Plan plan = detail::fit_workspace(params, mode, bytes);
  set_workspace(params, plan, workspace, bytes);
  return plan;
}

// What cp_fn gathers in place: the parts of all ranks, `floats` of each, that of rank 0 first.
struct Parts {
  float* first;
  std::size_t floats;
};

// Those that lie in the workspace of the params. A part begins with its output or, where the
// outputs are added up by the caller, is the (max, sum) alone.
template <class T>
Parts parts_of(const AttentionParams<T>& params) {
  float* const own =
      params.cp_form == CpForm::kScaled ? params.cp_ML : std::min(params.cp_O, params.cp_ML);
  return {own - params.cp_rank * params.cp_stride, static_cast<std::size_t>(params.cp_stride)};
}

}  // namespace attn
