// SPDX-License-Identifier: Apache-2.0
// Consumers that share the keys of 64 rows, each with every kKeyGroups-th block: the others leave
// what they have in shared memory, and the first adds it to its own.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm90/products.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/softmax.cuh"

namespace attn::sm90 {

// One consumer's side of that. Every thread finds the rows and columns of the same thread.
template <class Traits, int kGroups = Traits::kKeyGroups>
class KeyPartsExchange {
  using Storage = SharedStorage<Traits>;

 public:
  __device__ __forceinline__ KeyPartsExchange(Storage& storage, int consumer)
      : storage_(storage), consumer_(consumer) {}

  // Whether this consumer's rows are those of another, to whom it leaves its part.
  __device__ __forceinline__ bool is_first() const { return consumer_ < Traits::kRowGroups; }

  // What this consumer has of a tile, for the first.
  template <class Softmax, int kOutput>
  __device__ __forceinline__ void leave(const Softmax& softmax, const float (&output)[kOutput]) {
    const int part = consumer_ - Traits::kRowGroups;
    auto& room = storage_.parts[part];
    const uint32_t thread = recomputed(threadIdx.x) % 128;
    const typename Softmax::Part rows = softmax.part();
    storage_.part_barriers.empty[part].wait(phase_ ^ 1);  // the first has read the part before
#pragma unroll
    for (int i = 0; i < kOutput; i += 4) {
      room.output[i / 4][thread] = {output[i], output[i + 1], output[i + 2], output[i + 3]};
    }
    room.rows[thread] = {rows.reference[0], rows.reference[1], rows.sum[0], rows.sum[1]};
    storage_.part_barriers.full[part].arrive();
    phase_ ^= 1;
  }

  // Adds what all others have of it.
  template <class Softmax, int kOutput>
  __device__ __forceinline__ void collect(Softmax& softmax, float (&output)[kOutput]) {
    for_parts([&](int part) {
      const auto& room = storage_.parts[part];
      const uint32_t thread = recomputed(threadIdx.x) % 128;
      storage_.part_barriers.full[part].wait(phase_);  // the part is complete
      const float4 rows = room.rows[thread];
      float own[2];
      float other[2];
      softmax.add({{rows.x, rows.y}, {rows.z, rows.w}}, own, other);
#pragma unroll
      for (int i = 0; i < kOutput; i += 4) {
        const float4 added = room.output[i / 4][thread];
        output[i] = output[i] * own[0] + added.x * other[0];
        output[i + 1] = output[i + 1] * own[0] + added.y * other[0];
        output[i + 2] = output[i + 2] * own[1] + added.z * other[1];
        output[i + 3] = output[i + 3] * own[1] + added.w * other[1];
      }
      storage_.part_barriers.empty[part].arrive();
    });
    phase_ ^= 1;
  }

 private:
  // The parts of this consumer's rows.
  template <class Body>
  __device__ __forceinline__ void for_parts(Body body) const {
#pragma unroll
    for (int group = 1; group < kGroups; ++group) {
      body((group - 1) * Traits::kRowGroups + consumer_);
    }
  }

  Storage& storage_;
  const int consumer_;
  uint32_t phase_ = 0;  // of the tile's parts
};

// Where each consumer has all keys of its rows there is nothing to exchange.
template <class Traits>
class KeyPartsExchange<Traits, 1> {
 public:
  __device__ __forceinline__ KeyPartsExchange(SharedStorage<Traits>&, int) {}
  __device__ __forceinline__ static constexpr bool is_first() { return true; }
  template <class Softmax, class Output>
  __device__ __forceinline__ void leave(const Softmax&, const Output&) {}
  template <class Softmax, class Output>
  __device__ __forceinline__ void collect(Softmax&, Output&) {}
};

}  // namespace attn::sm90
