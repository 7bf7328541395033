// SPDX-License-Identifier: Apache-2.0
// The two products of a consumer warpgroup, and whose turn it is to issue them.
#pragma once

#include "attn/sm90/wgmma.cuh"

namespace attn::sm90 {

// S = Q K^T for 64 rows of Q and a block of K in shared memory, as one group.
template <class Traits, int kScores>
__device__ __forceinline__ void issue_scores(float (&scores)[kScores],
                                             uint32_t queries,
                                             uint32_t keys) {
  const uint32_t q = row_descriptor(queries);
  const uint32_t k = row_descriptor(keys);
  pin_registers(scores);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < Traits::kHeadDim / 16; ++i) {
    multiply_shared<typename Traits::T>(scores,
                                        q + row_step(i, Traits::kQueryPanelBytes),
                                        k + row_step(i, Traits::kKeyPanelBytes),
                                        i > 0);
  }
  wgmma_commit();
}

// O = P V, or with `accumulate` O += P V, for a block of V in shared memory, as one group.
template <class Traits, int kOutput, int kPacked>
__device__ __forceinline__ void issue_output(float (&output)[kOutput],
                                             uint32_t (&p)[kPacked],
                                             uint32_t values,
                                             bool accumulate) {
  const uint32_t v = column_descriptor(values, Traits::kKeyPanelBytes);
  pin_registers(output);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < Traits::kCtaS / 16; ++i) {
    if constexpr (Traits::kHalvesOutput) {
      auto& left = reinterpret_cast<float (&)[kOutput / 2]>(output[0]);
      auto& right = reinterpret_cast<float (&)[kOutput / 2]>(output[kOutput / 2]);
      const uint32_t panels = Traits::kPanelsV / 2 * Traits::kKeyPanelBytes >> 4;
      multiply_registers<typename Traits::T>(
          left, &p[4 * i], v + column_step(i), accumulate || i > 0);
      multiply_registers<typename Traits::T>(
          right, &p[4 * i], v + column_step(i) + panels, accumulate || i > 0);
    } else {
      multiply_registers<typename Traits::T>(
          output, &p[4 * i], v + column_step(i), accumulate || i > 0);
    }
  }
  wgmma_commit();
}

// Ping-pong: consumers issue in turn, so that the softmax of one meets the products of another. A
// turn's barrier counts its owner and the consumer before it.
template <int kConsumers>
class Turns {
 public:
  __device__ __forceinline__ explicit Turns(int consumer) : consumer_(consumer) {}

  __device__ __forceinline__ void begin() const {
    if (kConsumers > 1 && consumer_ == 0) {
      named_barrier_arrive(barrier(0), 256);  // the first turn is consumer 0's
    }
  }

  __device__ __forceinline__ void wait() const {
    if constexpr (kConsumers > 1) {
      named_barrier_sync(barrier(consumer_), 256);  // the consumer before has issued
    }
  }

  __device__ __forceinline__ void pass() const {
    if constexpr (kConsumers > 1) {
      named_barrier_arrive(barrier(consumer_ + 1 == kConsumers ? 0 : consumer_ + 1), 256);
    }
  }

  // The first barrier that is free for other uses.
  static constexpr int kEndOfBarriers = 1 + kConsumers;

 private:
  __device__ __forceinline__ static int barrier(int consumer) { return 1 + consumer; }

  const int consumer_;
};

}  // namespace attn::sm90
