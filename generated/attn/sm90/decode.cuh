// SPDX-License-Identifier: Apache-2.0
// Decode attention for Hopper: the kernel of sm_80, which reads memory as fast as it goes, launched
// while the kernel before it ends (programmatic dependent launch). That takes about a microsecond
// off a short call.
#pragma once

#include "attn/sm80/decode.cuh"
#include "attn/sm90/decode_cluster.cuh"
#include "attn/sm90/dependent_launch.cuh"

namespace attn::sm90 {

// The CTAs of the next launch may come as soon as all of this one are here: they take the place of
// those that end, and write nothing before this launch has ended.
struct FormerLaunch {
  static constexpr bool kTakesTime = true;

  __device__ __forceinline__ void operator()() const {
    wait_for_former_launch();
    allow_next_launch();
  }
};

template <class Config>
__device__ __forceinline__ void decode(sm80::DecodeStorage<Config>& storage,
                                       const DecodeArguments<typename Config::T>& arguments) {
  sm80::decode<Config>(storage, arguments, FormerLaunch());
}

// A plain call. Where a cache begins that is not paged lies in memory, too: such calls wait first.
template <class Config>
__device__ __forceinline__ void decode_plain(sm80::DecodeStorage<Config>& storage,
                                             const DecodeArguments<typename Config::T>& arguments) {
  if constexpr (Config::kCache == CacheType::kPaged) {
    sm80::decode_ahead<Config>(
        storage, sm80::plain<Config>(arguments), FormerLaunch(), sm80::NoCluster());
  } else {
    sm80::decode<Config>(storage, sm80::plain<Config>(arguments), FormerLaunch());
  }
}

// A plain call on a paged cache, of CTAs that come in clusters.
template <class Config>
__device__ __forceinline__ void decode_clusters(
    sm80::DecodeStorage<Config>& storage, const DecodeArguments<typename Config::T>& arguments) {
  static_assert(sm80::kLeavesInLine<Config>, "parts from other CTAs find room beside the ring");
  __shared__ ClusterParts<Config> parts;
  sm80::decode_ahead<Config>(
      storage, sm80::plain<Config>(arguments), FormerLaunch(), Cluster<Config>(parts));
}

}  // namespace attn::sm90
