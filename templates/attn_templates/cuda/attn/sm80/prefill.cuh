// SPDX-License-Identifier: Apache-2.0
// Prefill attention for sm_80 and later: one CTA computes kCtaQ rows of one head against the keys
// they see.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/sm80/attend.cuh"
#include "attn/sm80/output.cuh"
#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/tile_copies.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

template <class Config>
__device__ __forceinline__ void prefill(PrefillStorage<Config>& storage,
                                        const Arguments<typename Config::T>& arguments) {
  using Traits = PrefillTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;

  // 1. Which rows, which keys.
  const QueryTile tile = map_cta(params, arguments.plan, Traits::kCtaQ, blockIdx.x);
  if (tile.rows <= 0) {
    return;
  }
  const VisibleKeys visible =
      visible_keys(params, tile.sequence, tile.q_len, Config::kMask == Mask::kCausal);
  const int last_query = tile.first_query + tile.rows - 1;
  const TileRange tiles = tiles_of(visible.any(tile.first_query, last_query), Traits::kCtaS);
  const int splits = split_count(tiles.begin, tiles.end, arguments.plan);
  if (tile.split >= max(splits, 1)) {
    return;
  }
  const int kv_head = tile.head / (params.num_heads / params.num_kv_heads);
  if (threadIdx.x == 0) {
    if constexpr (Traits::Kv::kHasPairs) {
      storage.pair_rows = Traits::Pairs::make(params, tile.sequence, kv_head);
    }
    const auto cache = Traits::Cache::make(params, tile.sequence, kv_head);
    storage.work = {tile,
                    split_range(tiles.begin, tiles.end, arguments.plan, tile.split),
                    cache,
                    visible,
                    splits,
                    Traits::unit_shift(cache)};
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

  // 2. Start the copies: Q with the first tile, then as many tiles as the ring holds but one.
  const int last_tile = work.keys.end - 1;
  TileStream<Config> stream(storage, params);
  stream.look_up(last_tile);
  stream.publish(last_tile);
  copy_queries<Config>(storage.query, params, tile);
#pragma unroll
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    __syncthreads();  // the addresses published last are visible to all warps
    stream.copy(last_tile - stage);
    stream.look_up(last_tile - stage - 1);
    stream.publish(last_tile - stage - 1);
  }

  // 3. Walk over the keys, from the last tile to the first.
  QueryFragments<Config> query;
  OnlineSoftmax<Traits::kRowFragments> softmax(params.inv_sqrt_dh *
                                               key_factor<Config>(params, kv_head));
  float output[Traits::kRowFragments][2 * Traits::kValueFragments][4] = {};
#pragma unroll 1
  for (int key_tile = last_tile; key_tile >= work.keys.begin; --key_tile) {
    copy_async_wait<Traits::kStages - 2>();
    __syncthreads();  // this tile is visible to all, and all have left the slot filled next
    if (key_tile == work.keys.end - 1) {
      query.load(storage.query, threadIdx.x / 32, threadIdx.x % 32);
    }
    if constexpr (Traits::Kv::kIsQuantised) {
      expand_tiles<Traits>(storage);
      __syncthreads();  // the tiles of T are visible to all, and their codes may be overwritten
    }
    stream.copy(key_tile - (Traits::kStages - 1));

    const int warp = threadIdx.x / 32;
    const int first_key = key_tile * Traits::kCtaS;
    const auto look_up = [&] { stream.look_up(key_tile - Traits::kStages); };
    if (storage.seen[warp].touch(first_key, first_key + Traits::kCtaS)) {
      attend<Config>(output, softmax, query, storage, key_tile, warp, look_up);
    } else {
      look_up();
    }
    stream.publish(key_tile - Traits::kStages);
  }
  softmax.finish();
  scale_output<Config>(output, params, work.tile);

  // 4. Leave the result, or this split's part of it.
  copy_async_wait<0>();
  __syncthreads();  // without keys, Q may still be on its way into the rows that take the output
  const int warp = threadIdx.x / 32;
  const int lane = opaque(threadIdx.x) % 32;
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
