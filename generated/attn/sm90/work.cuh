// SPDX-License-Identifier: Apache-2.0
// What the scheduler gives the loader to do, and the loader the consumers.
//
// A block of keys is kCtaS consecutive keys of a sequence, block n from key n kCtaS on: what is
// loaded, and multiplied, at a time. (A block of a cache is block_len tokens, wherever they lie.)
#pragma once

#include "attn/config.h"
#include "attn/key_range.cuh"
#include "attn/sm90/block_steps.cuh"
#include "attn/split.cuh"

namespace attn::sm90 {

// Blocks of keys as the 64 rows of a row group see them.
struct SeenBlocks {
  int last;            // of which some row sees something; the first of the item, where none does
  TileRange unmasked;  // of which every row sees every key
};

// What a consumer warpgroup computes between two outputs: its 64 rows of a query tile against a
// range of key blocks.
struct WorkItem {
  int first_block;  // key blocks [first_block, end_block); none: the consumer may leave
  int end_block;    // first_block and a multiple of kKeyGroups
  int end_key;      // its keys end here, though blocks behind may be loaded (kKeyGroups)
  int first_query;  // of the tile, within its sequence
  int q_len;
  int k_len;        // keys of the sequence on this rank
  int origin;       // position of the sequence's query 0
  int chunk;        // keys of a chunk, where the ranks of a group share the sequence
  int head;         // the first, where the tile has several
  int first_token;  // row of q and out that holds first_query
  int split;        // kWholeRow, or the slot of the workspace that takes the result
  SeenBlocks seen;  // by the consumer's rows
};

constexpr int kWholeRow = -1;

template <class Traits>
__device__ __forceinline__ VisibleKeys
visible_keys_of(const WorkItem& item, const AttentionParams<typename Traits::T>& params) {
  return {item.origin,
          item.k_len,
          params.window_size,
          Traits::Config::kMask == Mask::kCausal,
          {params.cp_size, params.cp_rank, item.chunk, params.cp_sharding == KeySharding::kZigZag}};
}

// The first key that some row of the tile sees. In front of a window nothing need be there: rows
// may hold anything, and entries of a block table may be wild.
template <class Traits>
__device__ __forceinline__ int first_seen_key(const WorkItem& item,
                                              const AttentionParams<typename Traits::T>& params) {
  return params.window_size == 0 ? 0
                                 : visible_keys_of<Traits>(item, params).first(item.first_query);
}

// The block of the cache that holds it.
template <class Traits>
__device__ __forceinline__ int first_seen_block(const WorkItem& item,
                                                const AttentionParams<typename Traits::T>& params,
                                                const BlockSteps<Traits::kCtaS>& steps) {
  const int key = first_seen_key<Traits>(item, params);
  return key == 0 ? 0 : steps.place(key).block;  // no division without a window
}

// Whether the slots of K and V have room for all keys of any sequence, and what was loaded stays
// there until they are filled again: tiles in turn may share it. (In front of a window, rows of V
// become zeros.)
template <class Traits>
__device__ __forceinline__ bool keys_stay(const AttentionParams<typename Traits::T>& params) {
  return Traits::kKeepsKeys && params.max_k_len <= Traits::kLoadedStages * Traits::kCtaS &&
         params.window_size == 0;
}

// A tile as the loader takes it.
template <int kRowGroups>
struct Work {
  WorkItem item;  // end_block 0: there are no more
  SeenBlocks seen[kRowGroups];
  int sequence;
  int kv_head;
  int key_token;  // kTokenBoxes: row of K and V that holds key 0 of the sequence
};

}  // namespace attn::sm90
