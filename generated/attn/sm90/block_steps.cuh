// SPDX-License-Identifier: Apache-2.0
// From a block of keys to the one before it, in a cache that consists of blocks: no division.
#pragma once

#include "attn/cache_iterator.cuh"

namespace attn::sm90 {

// A token's block among those of its sequence, and the row within it.
struct TokenPlace {
  int block;
  int row;
};

// Steps of kKeys tokens, what a kernel takes at a time.
template <int kKeys>
class BlockSteps {
 public:
  __device__ __forceinline__ explicit BlockSteps(int block_len)
      : block_len_(block_len), blocks_(kKeys / block_len), rows_(kKeys % block_len) {}

  __device__ __forceinline__ int block_len() const { return block_len_; }

  // Of a token, by a division unless block_len is a power of two.
  __device__ __forceinline__ TokenPlace place(int token) const {
    const BlockSplitter splitter = BlockSplitter::make(block_len_);
    return {splitter.block(token), splitter.row(token)};
  }

  // Of the token kKeys before it.
  __device__ __forceinline__ TokenPlace before(TokenPlace place) const {
    place.block -= blocks_;
    place.row -= rows_;
    if (place.row < 0) {
      place.block -= 1;
      place.row += block_len_;
    }
    return place;
  }

 private:
  const int block_len_;
  const int blocks_;  // whole blocks of a step
  const int rows_;    // what is left of it
};

}  // namespace attn::sm90
