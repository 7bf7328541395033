// SPDX-License-Identifier: Apache-2.0
// Decode attention for sm_80 and later: one to eight query tokens of each sequence against all the
// keys before them, at the speed of memory.
//
// A CTA computes a range of a column (attn/decode_ranges.cuh). Each of its warps owns 16 tokens of
// every stage, and a ring of its own for them: nothing waits for another warp until a segment ends,
// and the copies of the next segment are under way while one is put together.
#pragma once

#include "attn/sm80/decode_ahead.cuh"
#include "attn/sm80/decode_computer.cuh"

namespace attn::sm80 {

// The same storage at an address that the compiler keeps: it would find it again at every use. A
// shuffle puts it into a uniform register, of which there are plenty.
template <class Config>
__device__ __forceinline__ DecodeStorage<Config>& kept(DecodeStorage<Config>& storage) {
  const uint32_t address = __shfl_sync(kWarp, kept(shared_address(&storage)), 0);
  return *static_cast<DecodeStorage<Config>*>(__cvta_shared_to_generic(address));
}

// The range of a CTA. Until `wait` returns, no memory is touched.
template <class Config, class Wait>
__device__ __forceinline__ void decode_range(DecodeStorage<Config>& shared,
                                             const DecodeArguments<typename Config::T>& arguments,
                                             Wait wait) {
  using Traits = DecodeTraits<Config>;
  DecodeStorage<Config>& storage = kept(shared);
  const int warp = own_warp<Config>();
  const int lane = threadIdx.x % 32;

  // 1. Which column, which range of it.
  const Start start = make_plan(storage, arguments, warp, lane, wait);
  if (start.work.units.begin == start.work.units.end) {
    return;
  }

  // 2. Its keys. The loop over them needs the registers of wide tiles.
  const CtaWork& work = Traits::kHasSpareRegisters ? start.work : storage.work;
  StageLoader<Config> loader(storage, arguments, start, work, warp, lane);
  RangeComputer<Config>(storage, arguments, work, NoCluster(), warp, lane).run(loader);
}

// No launch overlaps with this one.
struct NothingToWaitFor {
  static constexpr bool kTakesTime = false;

  __device__ __forceinline__ void operator()() const {}
};

template <class Config, class Wait>
__device__ __forceinline__ void decode(DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments,
                                       Wait wait) {
  touch(arguments);
  decode_range(storage, arguments, wait);
}

template <class Config>
__device__ __forceinline__ void decode(DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments) {
  decode<Config>(storage, arguments, NothingToWaitFor());
}

template <class Config>
__device__ __forceinline__ void decode_plain(DecodeStorage<Config>& storage,
                                             const DecodeArguments<typename Config::T>& arguments) {
  decode<Config>(storage, plain<Config>(arguments), NothingToWaitFor());
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage : sm80::DecodeStorage<Config> {};

}  // namespace attn
