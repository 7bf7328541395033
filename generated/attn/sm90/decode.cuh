// SPDX-License-Identifier: Apache-2.0
// Decode attention for Hopper: the kernel of sm_80, which reads memory as fast as it goes, launched
// while the kernel before it ends (programmatic dependent launch). That takes about a microsecond
// off a short call.
#pragma once

#include "attn/sm80/decode.cuh"
#include "attn/sm90/dependent_launch.cuh"

namespace attn::sm90 {

// The CTAs of the next launch may come as soon as all of this one are here: they take the place of
// those that end, and touch no memory before this launch has ended.
template <class Config>
__device__ __forceinline__ void decode(sm80::DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments) {
  sm80::decode<Config>(storage, arguments, [] {
    wait_for_former_launch();
    allow_next_launch();
  });
}

}  // namespace attn::sm90
