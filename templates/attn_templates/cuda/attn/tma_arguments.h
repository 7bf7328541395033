// SPDX-License-Identifier: Apache-2.0
// What the kernels that read by TMA take beside a call and its plan: tensor maps.
// attn_runtime/tensor_maps.py is the twin.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <type_traits>

#include "attn/config.h"
#include "attn/error.h"
#include "attn/kv_type.h"
#include "attn/params.h"
#include "attn/tensor_map.h"

namespace attn::detail {

constexpr int kLeastBoxRows = 16;  // of a cache of blocks: smaller boxes take too long

// 16-bit words that elements of the cache take: what maps count in, so that a panel of codes is
// read like one of elements.
template <class Config>
constexpr std::int64_t words_of(std::int64_t elements) {
  return elements * KvTraits<typename Config::T, typename Config::Tkv>::kBits / 16;
}

// K and V of all tokens.
template <class Config>
void encode_keys(TmaArguments<typename Config::T>& arguments,
                 const LinearIteratorParams& linear,
                 bool is_bf16) {
  constexpr unsigned kBoxRows = TileOf<Config>::kCtaS;
  const std::int64_t heads = arguments.params.num_kv_heads;
  if (linear.token_count <= 0) {
    // One of several ranks may have no key at all.
    if (arguments.params.max_k_len > 0 && arguments.params.cp_size == 1) {
      throw Error(Status::kInvalidArgument,
                  "linear_iter_params.token_count",
                  "linear_iter_params.token_count is " + std::to_string(linear.token_count) +
                      ": give the rows that K and V have, a tensor map must know its bounds");
    }
    return;
  }
  arguments.k = encode_rows(
      {"linear_iter_params.k",
       linear.k,
       3,
       {words_of<Config>(Config::kHeadDim), heads, linear.token_count},
       {words_of<Config>(linear.k_head_stride), words_of<Config>(linear.k_token_stride)}},
      is_bf16,
      kBoxRows);
  arguments.v = encode_rows(
      {"linear_iter_params.v",
       linear.v,
       3,
       {words_of<Config>(Config::kHeadDimV), heads, linear.token_count},
       {words_of<Config>(linear.v_head_stride), words_of<Config>(linear.v_token_stride)}},
      is_bf16,
      kBoxRows);
}

// The pools of K and V. A box is the most rows of a tile that always lie in one block, where that
// is kLeastBoxRows or more. Other block lengths are gathered without maps.
template <class Config>
void encode_keys(TmaArguments<typename Config::T>& arguments,
                 const PagedIteratorParams& paged,
                 bool is_bf16) {
  if (paged.block_len % kLeastBoxRows != 0) {
    return;
  }
  if (paged.block_count <= 0 && arguments.params.max_k_len > 0) {
    throw Error(Status::kInvalidArgument,
                "paged_iter_params.block_count",
                "paged_iter_params.block_count is " + std::to_string(paged.block_count) +
                    ": give the blocks that the pools have, a tensor map must know its bounds");
  }
  const auto box_rows = static_cast<unsigned>(std::gcd(paged.block_len, TileOf<Config>::kCtaS));
  const std::int64_t heads = arguments.params.num_kv_heads;
  arguments.k =
      encode_rows({"paged_iter_params.k",
                   paged.k,
                   4,
                   {words_of<Config>(Config::kHeadDim), heads, paged.block_len, paged.block_count},
                   {words_of<Config>(paged.k_head_stride),
                    words_of<Config>(paged.k_token_stride),
                    words_of<Config>(paged.k_block_stride)}},
                  is_bf16,
                  box_rows);
  arguments.v =
      encode_rows({"paged_iter_params.v",
                   paged.v,
                   4,
                   {words_of<Config>(Config::kHeadDimV), heads, paged.block_len, paged.block_count},
                   {words_of<Config>(paged.v_head_stride),
                    words_of<Config>(paged.v_token_stride),
                    words_of<Config>(paged.v_block_stride)}},
                  is_bf16,
                  box_rows);
}

// Blocks lie at any address, so one map covers all memory: whole rows that begin every 16 bytes
// (dimension 1) from every 16 GiB (dimension 3); the kernel takes an address apart into the two
// (sm90/box_place.cuh). It begins at address 128, since no map may begin at 0.
template <class Config>
void encode_keys(TmaArguments<typename Config::T>& arguments,
                 const BlockIteratorParams& block,
                 bool is_bf16) {
  if (block.block_len % kLeastBoxRows != 0) {
    return;
  }
  constexpr std::uintptr_t kBase = 128;
  constexpr std::int64_t kColumns = words_of<Config>(Config::kHeadDim);
  const auto box_rows = static_cast<unsigned>(std::gcd(block.block_len, TileOf<Config>::kCtaS));
  const MappedRows memory{"block_iter_params.block_ptrs",
                          reinterpret_cast<const void*>(kBase),
                          4,
                          {kColumns, 1LL << 30, box_rows, 1LL << 20},
                          {8, kColumns, 1LL << 33}};
  arguments.k = encode_rows(memory, is_bf16, box_rows);
  arguments.v = arguments.k;
}

// The maps of a call. Rows of q and out are tokens, or packed heads of fewer tokens: a box of q is
// the 64 rows of a warpgroup, one of out the 16 rows of a warp.
template <class Config>
void encode_maps(TmaArguments<typename Config::T>& arguments) {
  const auto& params = arguments.params;
  const bool is_bf16 = std::is_same_v<typename Config::T, __nv_bfloat16>;
  const std::int64_t heads = params.num_heads;
  const auto pack = static_cast<unsigned>(arguments.plan.packed_heads);
  const unsigned warp_pack = std::min(pack, 16u);
  arguments.q = encode_rows({"q",
                             params.q,
                             3,
                             {Config::kHeadDim, heads, params.token_num},
                             {Config::kHeadDim, params.stride}},
                            is_bf16,
                            64 / pack,
                            pack);
  arguments.out = encode_rows({"out",
                               params.out,
                               3,
                               {Config::kHeadDimV, heads, params.token_num},
                               {Config::kHeadDimV, heads * Config::kHeadDimV}},
                              is_bf16,
                              16 / warp_pack,
                              warp_pack);
  if constexpr (Config::kCache == CacheType::kLinear) {
    encode_keys<Config>(arguments, params.linear_iter_params, is_bf16);
  } else if (params.max_k_len > 0) {
    if constexpr (Config::kCache == CacheType::kPaged) {
      encode_keys<Config>(arguments, params.paged_iter_params, is_bf16);
    } else {
      encode_keys<Config>(arguments, params.block_iter_params, is_bf16);
    }
  }
}

// The part of the arguments that follows the plan.
template <class Config>
void complete(TmaArguments<typename Config::T>& arguments) {
  AttentionParams<typename Config::T>& params = arguments.params;
  params.size_per_head_v = Config::kHeadDimV;
  if (params.counters == nullptr) {
    throw Error(
        Status::kInvalidArgument,
        "counters",
        "counters is null: kernels of this family take their tiles from a counter; give one "
        "int of device memory per stream, zeroed once (it resets itself)");
  }
  const int group = params.num_heads / params.num_kv_heads;
  arguments.pack_heads = std::min(group, arguments.plan.packed_heads);
  arguments.group_packs = group / arguments.pack_heads;
  encode_maps<Config>(arguments);
}

}  // namespace attn::detail
