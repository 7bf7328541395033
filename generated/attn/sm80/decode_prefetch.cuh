// SPDX-License-Identifier: Apache-2.0
// What a decode launch asks L2 for while the launch before it ends: its first keys.
#pragma once

#include "attn/sm80/decode_column.cuh"
#include "attn/sm80/decode_instructions.cuh"

namespace attn::sm80 {

// What is read for the sake of a cache must have a use, or it is not read. This one does no harm.
template <class T>
__device__ __forceinline__ void pretend_to_use(const AttentionParams<T>& params, bool is_unlikely) {
  if (is_unlikely) {
    prefetch_l2(params.out);
  }
}

constexpr int kNoWord = static_cast<int>(0x80000000u);  // neither an entry nor much else

// Asks L2 for this warp's rows of the first stage of a range, and returns where the block table
// says where they are; null where there is nothing to ask for. `window` holds the stage. More
// stages gain nothing: where launches do not overlap, they are asked for twice (measured on an
// H200: three cost 2 to 3 us of a cold launch).
//
// The launch before this one may still write all that is read here, and the cache. What comes of it
// is no more than a hint, since L2 is where all writes go: so lengths and entries may be anything,
// and are checked before they are believed.
template <class Config>
__device__ __forceinline__ const int* prefetch_keys(
    const DecodeArguments<typename Config::T>& arguments,
    const CtaWork& work,
    const Window& window,
    int warp,
    int lane) {
  using Traits = DecodeTraits<Config>;
  if constexpr (Config::kCache == CacheType::kPaged) {
    constexpr int kRowBytes = Traits::Kv::template kRowBytes<Traits::kHeadDim>;
    constexpr int kLine = 128;
    const AttentionParams<typename Config::T>& params = arguments.params;
    const PagedIteratorParams& paged = params.paged_iter_params;
    const int unit = work.units.begin;
    if (arguments.ranges.pieces != 0 || unit >= work.units.end) {
      return nullptr;
    }

    // 1. The sequence, and the token of this lane.
    const int owner = 31 - __clz(__ballot_sync(kWarp, window.before <= unit));
    const int sequence = window.first + owner;
    const int first_key = __shfl_sync(kWarp, window.seen.by_some.begin, owner);
    const int stage = first_key / Traits::kCtaS + unit - __shfl_sync(kWarp, window.before, owner);
    const int token =
        stage * Traits::kCtaS + warp * Traits::kWarpTokens + lane % Traits::kUnitTokens;
    const auto cache = Traits::Cache::make(params, sequence, work.tile.kv_head);
    const int block = cache.splitter.block(token);
    if (token < 0 || block >= paged.max_blocks || sequence < 0 || sequence >= params.batch_size) {
      return nullptr;
    }

    // 2. Its rows: that of K to the first 16 lanes, that of V to the others.
    const int* const at = cache.entries() + block;
    const int entry = __ldcg(at);
    if (static_cast<unsigned>(entry) < static_cast<unsigned>(paged.block_count)) {
      const RowAddress row = cache.row(params, token, entry);
      const char* const bytes = lane < Traits::kUnitTokens ? row.k : row.v;
#pragma unroll
      for (int byte = 0; byte < kRowBytes; byte += kLine) {
        prefetch_l2(bytes + byte);
      }
    }
    return at;
  } else {
    return nullptr;
  }
}

}  // namespace attn::sm80
