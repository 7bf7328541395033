// SPDX-License-Identifier: Apache-2.0
// Prefill attention for sm_80 and later: one CTA computes kCtaQ rows of one head against the keys
// they see.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm80/attend.cuh"
#include "attn/sm80/output.cuh"
#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/tile_copies.cuh"
#include "attn/sm80/walk.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

template <class Config>
__device__ __forceinline__ void prefill(PrefillStorage<Config>& storage,
                                        const Arguments<typename Config::T>& arguments) {
  using Traits = PrefillTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;

  // 1. Which rows: start the copy of Q. The lengths of queries and of keys are read together.
  const QueryTile tile = map_cta(params, arguments.plan, Traits::kCtaQ, blockIdx.x);
  const VisibleKeys visible =
      visible_keys(params, tile.sequence, tile.q_len, Config::kMask == Mask::kCausal);
  if (tile.rows <= 0) {
    return;
  }
  copy_queries<Config>(storage.query, params, tile);
  copy_async_commit();

  // 2. Which keys.
  const int last_query = tile.first_query + tile.rows - 1;
  const KeyRange seen = visible.any(tile.first_query, last_query);
  const TileRange tiles = tiles_of(seen, Traits::kCtaS);
  const int splits = split_count(tiles.begin, tiles.end, arguments.plan);
  if (tile.split >= max(splits, 1)) {
    copy_async_wait<0>();  // no copy may arrive when the CTA has left
    return;
  }
  const int kv_head = tile.head / (params.num_heads / params.num_kv_heads);
  if (threadIdx.x == 0) {
    if constexpr (Traits::Kv::kHasPairs) {
      storage.pair_rows = Traits::Pairs::make(params, tile.sequence, kv_head);
    }
    const TileRange keys = split_range(tiles.begin, tiles.end, arguments.plan, tile.split);
    storage.work = {tile,
                    keys,
                    Traits::Cache::make(params, tile.sequence, kv_head),
                    visible,
                    splits,
                    seen.begin,
                    keys.begin * Traits::kCtaS < seen.begin ? keys.begin + 1 : keys.begin};
  }
  if (threadIdx.x % 32 == 0) {
    const int warp = threadIdx.x / 32;
    const int first = tile.first_query + warp * Traits::kWarpRows;
    const int last = min(first + Traits::kWarpRows - 1, last_query);
    const bool has_rows = first <= last;
    storage.seen[warp] = {has_rows ? visible.any(first, last) : KeyRange{0, 0},
                          visible.all(first, last)};
  }
  __syncthreads();  // storage.work and storage.seen are visible to all warps
  const auto& work = storage.work;

  // 3. Walk over the keys, from the last tile to the first.
  SoftmaxOf<Config> softmax(params.inv_sqrt_dh * key_factor<Config>(params, kv_head) *
                            kStoredUnit<typename Config::T, typename Config::Tkv>);
  float output[Traits::kRowFragments][2 * Traits::kValueFragments][4] = {};
  if (work.keys.begin < work.keys.end) {
    walk_over_keys<Config>(output, softmax, storage, params);
  }
  softmax.finish();
  scale_output<Config>(output, params, work.tile);

  // 4. Leave the result, or this split's part of it.
  copy_async_wait<0>();
  __syncthreads();  // without keys, Q may still be on its way into the rows that take the output
  const int warp = threadIdx.x / 32;
  const int lane = recomputed(threadIdx.x) % 32;
  if (work.splits > 1 || params.cp_size > 1) {
    store_partial<Config>(output, softmax, params, work.tile, warp, lane);
  } else {
    store_output<Config>(storage.query, output, softmax, params, work.tile, warp, lane);
  }
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage : sm80::PrefillStorage<Config> {};

}  // namespace attn
