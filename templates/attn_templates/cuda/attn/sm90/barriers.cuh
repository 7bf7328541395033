// SPDX-License-Identifier: Apache-2.0
// How the warps of a CTA wait for each other and for TMA: mbarriers, rings of them, named barriers,
// proxy fences.
#pragma once

#include "attn/async_copies.cuh"
#include "attn/types.h"

namespace attn::sm90 {

// --- mbarriers ----------------------------------------------------------------------------------

// Arrives at the barrier at an address in shared memory.
__device__ __forceinline__ void arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// A barrier in shared memory. Its phase ends when `count` arrivals, and every byte announced with
// one of them, have come in; phases alternate between 0 and 1. A fresh barrier is in phase 0, so
// waiting for phase 1 passes at once.
struct Barrier {
  uint64_t word;

  __device__ __forceinline__ void init(int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&word)),
                 "r"(count)
                 : "memory");
  }

  __device__ __forceinline__ void arrive() { arrive_at(shared_address(&word)); }

  // Arrives, and holds the phase open until TMA has written `bytes` (of whole boxes, clipped or
  // not).
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&word)),
        "r"(bytes)
        : "memory");
  }

  // Whether the given phase has ended.
  __device__ __forceinline__ bool ended(uint32_t phase) const {
    uint32_t ended;
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n"
        "}\n"
        : "=r"(ended)
        : "r"(shared_address(&word)), "r"(phase)
        : "memory");
    return ended != 0;
  }

  // Returns once the given phase has ended.
  __device__ __forceinline__ void wait(uint32_t phase) const {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1, %2;\n"
        "@ended bra done;\n"
        "bra again;\n"
        "done:\n"
        "}\n" ::"r"(shared_address(&word)),
        "r"(phase),
        "r"(10'000'000)  // nanoseconds for which the hardware may let the thread sleep
        : "memory");
  }
};

// Arrives at the barrier when all copies that the calling thread has issued (attn/async_copies.cuh)
// are complete.
__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(&barrier.word))
      : "memory");
}

// Makes the initialisation of mbarriers visible to TMA; a CTA barrier then makes it visible to the
// other threads.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// A place in a ring of kSlots buffers, each with a `full` and an `empty` barrier. Whoever empties
// slots waits for full[slot] in `phase`, whoever fills them waits for empty[slot] in `phase ^ 1`;
// both move through the ring alike. Those who share the slots out among them take kStep at a time.
template <int kSlots, int kStep = 1>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    slot += kStep;
    if (slot >= kSlots) {
      slot -= kSlots;
      phase ^= 1;
    }
  }
};

// The same in one register.
template <int kSlots>
class PackedRingPosition {
 public:
  __device__ __forceinline__ int slot() const { return word_ >> 1; }
  __device__ __forceinline__ uint32_t phase() const { return word_ & 1; }

  __device__ __forceinline__ void advance() {
    word_ += 2;
    if (word_ >= 2 * kSlots) {
      word_ = (word_ & 1) ^ 1;
    }
  }

 private:
  int word_ = 0;  // 2 * slot + phase
};

// --- named barriers -----------------------------------------------------------------------------

// Id 0 is __syncthreads.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// --- proxies ------------------------------------------------------------------------------------

// This thread's ordinary writes of shared memory, before TMA or wgmma reads them (they read through
// another proxy).
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace attn::sm90
