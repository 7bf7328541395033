// SPDX-License-Identifier: Apache-2.0
// A thread block cluster: CTAs that run at the same time and read each other's shared memory. The
// host says by a launch attribute how many CTAs in a row are one; without it, each is alone.
#pragma once

#include "attn/sm90/barriers.cuh"

namespace attn::sm90 {

// CTAs of this one's cluster.
__device__ __forceinline__ int cluster_size() {
  uint32_t ctas;
  asm("mov.u32 %0, %%cluster_nctaid.x;\n" : "=r"(ctas));
  return static_cast<int>(ctas);
}

// This CTA's place in its cluster.
__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return static_cast<int>(rank);
}

// What this thread has written before is visible to every thread of the cluster that waits. By
// whole warps; threads that have ended count as arrived.
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
}

// The same of what nobody reads.
__device__ __forceinline__ void arrive_at_cluster_unseen() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}

// Returns when all threads of the cluster have arrived as often as this one.
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// Reads what lies at an address of this CTA's shared memory from that of another CTA of the
// cluster.
__device__ __forceinline__ float4 load_of_cta(uint32_t address, int rank) {
  float4 value;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

// Where another CTA of the cluster has what this one has at an address in shared memory.
__device__ __forceinline__ uint32_t address_in_cluster(uint32_t shared, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}

// Writes to the CTA of an address, and tells a barrier there how many bytes have come.
__device__ __forceinline__ void send(uint32_t to, const float (&x)[4], uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(to),
      "f"(x[0]),
      "f"(x[1]),
      "f"(x[2]),
      "f"(x[3]),
      "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void send(uint32_t to, const float (&x)[2], uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];\n" ::
          "r"(to),
      "f"(x[0]),
      "f"(x[1]),
      "r"(barrier)
      : "memory");
}

// Returns once the first phase of a barrier has ended, with all that CTAs of the cluster have sent.
__device__ __forceinline__ void wait_for_sent(const Barrier& barrier) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%0], 0;\n"
      "@ended bra done;\n"
      "bra again;\n"
      "done:\n"
      "}\n" ::"r"(shared_address(&barrier.word))
      : "memory");
}

}  // namespace attn::sm90
