// SPDX-License-Identifier: Apache-2.0
// Codes as the products of decode take them: halves, whatever the element type of the call is,
// since the bits of a code become a half in the fewest instructions.
#pragma once

#include "attn/sm80/dequantise.cuh"

namespace attn::sm80 {

// A half whose exponent is zero is the number of its last bits times 2^-24, exactly, and the tensor
// cores take such a half like any other. So a code need only be cut out of its word.
//
// A word of a row has 2 n codes, n = kPairs. expand() makes n pairs of halves of them: pair p has
// code p in its low half and code p + n in its high half. This order is the cheapest to make, and
// it is that of a transposed fragment, where the high half of a word is of the next token.
//
//   half = x kUnit, and kOdd times that in pairs of odd p        x: the code, or the e4m3 itself
//   kCentre   the middle of all codes
//
// Columns of V: where that takes fewer instructions, expand_columns() leaves in a pair of odd p its
// sum with the pair before (kOddAreSums). Products are linear, and so what they add up is taken
// apart once, at the end.
template <class Tkv>
struct Halves;

template <>
struct Halves<Int8> {
  static constexpr int kPairs = 2;
  static constexpr float kUnit = 1.0f / (1 << 24);
  static constexpr float kOdd = 1.0f;
  static constexpr float kCentre = 128.0f;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = permute_bytes<0x4240>(word, 0);
    pairs[1] = permute_bytes<0x4341>(word, 0);
  }

  static constexpr bool kOddAreSums = false;
  __device__ __forceinline__ static void expand_columns(uint32_t (&pairs)[kPairs], uint32_t word) {
    expand(pairs, word);
  }
};

// The code of the high nibble stays where it is, four bits further up.
template <>
struct Halves<Int4> {
  static constexpr int kPairs = 4;
  static constexpr float kUnit = 1.0f / (1 << 24);
  static constexpr float kOdd = 16.0f;
  static constexpr float kCentre = 8.0f;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    const uint32_t shifted = word >> 8;
    pairs[0] = word & 0x000f000f;
    pairs[1] = word & 0x00f000f0;
    pairs[2] = shifted & 0x000f000f;
    pairs[3] = shifted & 0x00f000f0;
  }

  // Both codes of a byte are one number.
  static constexpr bool kOddAreSums = true;
  __device__ __forceinline__ static void expand_columns(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[1] = permute_bytes<0x4240>(word, 0);
    pairs[3] = permute_bytes<0x4341>(word, 0);
    pairs[0] = pairs[1] & 0x000f000f;
    pairs[2] = pairs[3] & 0x000f000f;
  }
};

// Sign, exponent and mantissa of an e4m3 in the place of those of a half: the exponent then counts
// from 15 instead of 7. NaN becomes 480.
template <>
struct Halves<E4m3> {
  static constexpr int kPairs = 2;
  static constexpr float kUnit = 1.0f / kE4m3Factor<half>;
  static constexpr float kOdd = 1.0f;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = widened(permute_bytes<0xa280>(word, 0));
    pairs[1] = widened(permute_bytes<0xb391>(word, 0));
  }

  static constexpr bool kOddAreSums = false;
  __device__ __forceinline__ static void expand_columns(uint32_t (&pairs)[kPairs], uint32_t word) {
    expand(pairs, word);
  }

 private:
  // Of two that stand behind eight copies of their sign each: the mask leaves one of them.
  __device__ __forceinline__ static uint32_t widened(uint32_t behind_signs) {
    return behind_signs << 7 & 0xbf80bf80;
  }
};

// The 16-bit type of the products: that of the call, or half where a cache holds codes.
template <class T, class Tkv>
struct ProductType {
  using Type = half;
};

template <class T>
struct ProductType<T, T> {
  using Type = T;
};

}  // namespace attn::sm80
