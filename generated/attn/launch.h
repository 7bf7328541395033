// SPDX-License-Identifier: Apache-2.0
// What the CUDA runtime knows of a kernel on each device, and launches that report errors by
// attn::Error.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include "attn/error.h"
#include "attn/kernel_info.h"
#include "attn/plan.h"

namespace attn::detail {

// A kernel as a unit knows it.
struct Entry {
  const char* name = nullptr;
  const void* address = nullptr;
  const void* plain_address = nullptr;     // the kernel of plain calls; null: there is none
  const void* clusters_address = nullptr;  // that of plain calls in clusters
  int threads = 0;
  int shared_bytes = 0;  // dynamic
  int cta_q = 0;
  int cta_s = 0;
  int packed_heads = 1;     // most query heads of a group that share a tile
  int min_ctas_per_sm = 1;  // that an SM has registers for
  int tile_ns = 0;          // what a query tile costs on a full device,
  int step_ns = 0;          // and each of its key tiles
  int cluster_ctas = 1;     // most of a cluster, of plain decode calls
  bool persistent = false;  // a CTA takes tiles until none is left
  int merged_splits = 1;    // splits of a tile that a cluster of CTAs merges, at most

  // The kernel waits for the launch before it by itself, so that it may begin while that one ends.
  bool is_dependent = false;
};

inline Status status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return Status::kNoDevice;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return Status::kNoKernelImage;
    default:
      return Status::kCudaError;
  }
}

inline const char* advice_for(Status status) {
  switch (status) {
    case Status::kNoDevice:
      return "; an NVIDIA GPU and its driver are needed";
    case Status::kNoKernelImage:
      return "; compile the unit for this device, for example -gencode=arch=compute_80,code=sm_90";
    default:
      return "";
  }
}

inline void check_cuda(cudaError_t error, const char* call, const char* kernel) {
  if (error == cudaSuccess) {
    return;
  }
  cudaGetLastError();  // the error is reported here, not by the caller's next call
  const Status status = status_of(error);
  throw Error(status,
              "",
              std::string(call) + " failed for " + kernel + ": " + cudaGetErrorString(error) +
                  " (" + cudaGetErrorName(error) + ")" + advice_for(status));
}

// What needs no device to be asked.
inline KernelInfo describe(const Entry& entry) {
  KernelInfo info;
  info.name = entry.name;
  info.threads = entry.threads;
  info.warps = entry.threads / 32;
  info.shared_bytes = entry.shared_bytes;
  info.cta_q = entry.cta_q;
  info.cta_s = entry.cta_s;
  info.packed_heads = entry.packed_heads;
  info.min_ctas_per_sm = entry.min_ctas_per_sm;
  info.tile_ns = entry.tile_ns;
  info.step_ns = entry.step_ns;
  info.tile_counters = entry.persistent ? 1 : 0;
  info.merged_splits = entry.merged_splits;
  info.cluster_ctas = entry.cluster_ctas;
  return info;
}

// Asks the current device for what a launch needs, and opts in to the kernel's shared memory.
inline KernelInfo resolve(const Entry& entry, int device) {
  KernelInfo info = describe(entry);
  cudaFuncAttributes attributes{};
  check_cuda(
      cudaFuncGetAttributes(&attributes, entry.address), "cudaFuncGetAttributes", entry.name);
  info.registers = attributes.numRegs;
  info.local_bytes = static_cast<int>(attributes.localSizeBytes);
  info.static_shared_bytes = static_cast<int>(attributes.sharedSizeBytes);
  info.ptx_version = attributes.ptxVersion;

  int shared_limit = 0;
  check_cuda(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "cudaDeviceGetAttribute",
             entry.name);
  if (entry.shared_bytes + info.static_shared_bytes > shared_limit) {
    throw Error(Status::kNotSupported,
                "",
                std::string(entry.name) + " needs " +
                    std::to_string(entry.shared_bytes + info.static_shared_bytes) +
                    " bytes of shared memory per CTA, but device " + std::to_string(device) +
                    " has " + std::to_string(shared_limit) + ": take a kernel with a smaller tile");
  }
  for (const void* address : {entry.address, entry.plain_address, entry.clusters_address}) {
    if (address != nullptr) {
      check_cuda(cudaFuncSetAttribute(
                     address, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared_bytes),
                 "cudaFuncSetAttribute",
                 entry.name);
    }
  }
  check_cuda(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&info.ctas_per_sm,
                                                    entry.address,
                                                    entry.threads,
                                                    static_cast<std::size_t>(entry.shared_bytes)),
      "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
      entry.name);
  check_cuda(cudaDeviceGetAttribute(&info.sm_count, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute",
             entry.name);
  return info;
}

// The state of one kernel, per device: a thread may switch devices between calls.
class KernelState {
 public:
  explicit KernelState(const Entry& entry) : entry_(entry) {}

  const KernelInfo& on_current_device() {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice", entry_.name);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = infos_.find(device);
    if (found != infos_.end()) {
      return found->second;
    }
    return infos_.emplace(device, resolve(entry_, device)).first->second;
  }

 private:
  Entry entry_;
  std::mutex mutex_;
  std::map<int, KernelInfo> infos_;  // nodes stay where they are
};

// CTAs to launch: one for each tile and split, or as many as the device holds at a time.
inline int ctas_of(const Entry& entry, const Plan& plan, const KernelInfo& info) {
  return entry.persistent ? std::min(plan.grid_x, info.sm_count * info.ctas_per_sm) : plan.grid_x;
}

// `cluster` CTAs in a row are one; 1: there are no clusters.
template <class Arguments>
void launch(
    const Entry& entry, int grid_x, CUstream_st* stream, Arguments arguments, int cluster = 1) {
  void* pointers[] = {&arguments};
  cudaLaunchAttribute attributes[3]{};
  unsigned count = 0;
  if (entry.is_dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (cluster > 1 && entry.cluster_ctas > 1) {
    // Those of decode find room beside the launch before where the device may place them as it
    // likes (measured: else two launches hardly overlap).
    attributes[count].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
    attributes[count].val.clusterSchedulingPolicyPreference =
        cudaClusterSchedulingPolicyLoadBalancing;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid_x));
  config.blockDim = dim3(static_cast<unsigned>(entry.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(entry.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check_cuda(
      cudaLaunchKernelExC(&config, entry.address, pointers), "cudaLaunchKernelExC", entry.name);
}

}  // namespace attn::detail
