// SPDX-License-Identifier: Apache-2.0
// From the codes of a row to 16-bit elements in their order, for those who store them as rows.
// Every code is exact. (decode_halves.cuh has the order that is cheapest for fragments.)
#pragma once

#include "attn/sm80/dequantise.cuh"

namespace attn::sm80 {

// --- codes --------------------------------------------------------------------------------------

// A word of a row has 2 n codes, n = kPairs. expand() makes n pairs of numbers of them: pair p has
// that of code 2 p in its low half and that of code 2 p + 1 in its high half. An element x of K or
// V is stored as x / kStoredUnit:
//
//   Int8, Int4   stored = number * (units * scale) + zero / kStoredUnit; f16: units are 1
//   E4m3         stored = number, for all rows in units of kE4m3Factor<T> * scale (dequantise.cuh)
template <class T, class Tkv>
struct OrderedExpander;

// A code in the last bits of a bf16 is code / 2^133, and no bf16 is 2^133. But 2^64 times too small
// an element is as exact, and one product and sum away. An e4m3 is stored as its bits stand, though
// bf16 counts its exponents from another bias. Softmax scale and output make up for both.
template <class T, class Tkv>
inline constexpr float kStoredUnit = 1.0f;

template <>
inline constexpr float kStoredUnit<__nv_bfloat16, Int8> = 0x1p64f;

template <>
inline constexpr float kStoredUnit<__nv_bfloat16, Int4> = 0x1p64f;

template <>
inline constexpr float kStoredUnit<__nv_bfloat16, E4m3> = 0x1p120f;  // 2^(127 - 7)

// Subnormal factors count.
__device__ __forceinline__ uint32_t mul2(uint32_t a, uint32_t b) {
  constexpr uint32_t kMinusZero = 0x80008000;
  return fma2(a, b, kMinusZero, __nv_bfloat16{});
}

// The byte c behind the byte 0x64 is the half 1024 + c.
template <>
struct OrderedExpander<half, Int8> {
  static constexpr int kPairs = 2;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kBase = 0x64646464;
    constexpr uint32_t kMinus1024 = 0xe400e400;
    pairs[0] = add2(permute_bytes<0x4140>(word, kBase), kMinus1024, half{});
    pairs[1] = add2(permute_bytes<0x4342>(word, kBase), kMinus1024, half{});
  }
};

// Behind a byte of zeros the byte c is the bf16 c / 2^133, below 128 a subnormal one.
template <>
struct OrderedExpander<__nv_bfloat16, Int8> {
  static constexpr int kPairs = 2;

  // A scale times 2^(133 - 64), as the factors of the numbers of a pair.
  __device__ __forceinline__ static uint32_t factors(uint32_t scale) { return scale; }

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = permute_bytes<0x4140>(word, 0);
    pairs[1] = permute_bytes<0x4342>(word, 0);
  }
};

// The byte of two codes stands in both halves, behind 0x64: the low nibble c of the one is
// 1024 + c, the high nibble of the other 1024 + 16 c.
template <>
struct OrderedExpander<half, Int4> {
  static constexpr int kPairs = 4;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = codes_of(permute_bytes<0x4040>(word, kBase));
    pairs[1] = codes_of(permute_bytes<0x4141>(word, kBase));
    pairs[2] = codes_of(permute_bytes<0x4242>(word, kBase));
    pairs[3] = codes_of(permute_bytes<0x4343>(word, kBase));
  }

 private:
  static constexpr uint32_t kBase = 0x64646464;

  __device__ __forceinline__ static uint32_t codes_of(uint32_t bytes) {
    constexpr uint32_t kOneAndSixteenth = 0x2c003c00;
    constexpr uint32_t kMinus1024And64 = 0xd400e400;
    return fma2(bytes & 0xfff0ff0f, kOneAndSixteenth, kMinus1024And64, half{});
  }
};

// As the byte of Int8: a low nibble c is c / 2^133, a high one 16 c / 2^133. The byte of zeros is
// eight copies of the sign of a low nibble.
template <>
struct OrderedExpander<__nv_bfloat16, Int4> {
  static constexpr int kPairs = 4;

  __device__ __forceinline__ static uint32_t factors(uint32_t scale) {
    constexpr uint32_t kOneAndSixteenth = 0x3d803f80;
    return mul2(scale, kOneAndSixteenth);
  }

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    const uint32_t low = word & 0x0f0f0f0f;
    const uint32_t high = word & 0xf0f0f0f0;
    pairs[0] = permute_bytes<0x8480>(low, high);
    pairs[1] = permute_bytes<0x9591>(low, high);
    pairs[2] = permute_bytes<0xa6a2>(low, high);
    pairs[3] = permute_bytes<0xb7b3>(low, high);
  }
};

// An e4m3 at the end of both halves, behind eight copies of its sign, is shifted to where its
// exponent and mantissa are those of T: the exponent then counts from T's bias. The mask takes away
// all copies of the sign but the first. NaN becomes 480.
template <int kShift, uint32_t kMask>
struct MovedE4m3 {
  static_assert(kShift <= 8, "a copy of the sign is shifted to the top");

  __device__ __forceinline__ static uint32_t first_pair(uint32_t word) {
    return permute_bytes<0x9180>(word, 0) << kShift & kMask;
  }

  __device__ __forceinline__ static uint32_t second_pair(uint32_t word) {
    return permute_bytes<0xb3a2>(word, 0) << kShift & kMask;
  }
};

template <>
struct OrderedExpander<half, E4m3> {
  static constexpr int kPairs = 2;
  using Moved = MovedE4m3<7, 0xbf80bf80>;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = Moved::first_pair(word);
    pairs[1] = Moved::second_pair(word);
  }
};

template <>
struct OrderedExpander<__nv_bfloat16, E4m3> {
  static constexpr int kPairs = 2;
  using Moved = MovedE4m3<4, 0x87f087f0>;

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = Moved::first_pair(word);
    pairs[1] = Moved::second_pair(word);
  }
};

// --- rows ---------------------------------------------------------------------------------------

// What turns the elements of a row into those of K or V, two at a time.
template <class T, class Tkv, bool kHasPairs = KvTraits<T, Tkv>::kHasPairs>
struct PairScale;

// e4m3: the factor belongs to the head, and is left to the scores and to the output.
template <class T, class Tkv>
struct PairScale<T, Tkv, false> {
  __device__ __forceinline__ static PairScale of(uint32_t) { return {}; }
  __device__ __forceinline__ uint32_t apply(uint32_t elements) const { return elements; }
};

template <class T, class Tkv>
struct PairScale<T, Tkv, true> {
  uint32_t scale;
  uint32_t zero;

  // Of a row's (scale, zero).
  __device__ __forceinline__ static PairScale of(uint32_t pair) {
    if constexpr (kStoredUnit<T, Tkv> == 1.0f) {
      return {permute_bytes<0x1010>(pair, pair), permute_bytes<0x3232>(pair, pair)};
    } else {
      constexpr uint32_t kUnits = 0x1f806200;  // 2^(133 - 64), 2^-64
      const uint32_t stored = mul2(pair, kUnits);
      const uint32_t scale = permute_bytes<0x1010>(stored, stored);
      return {OrderedExpander<T, Tkv>::factors(scale), permute_bytes<0x3232>(stored, stored)};
    }
  }

  // Rounded once: the code itself is exact.
  __device__ __forceinline__ uint32_t apply(uint32_t elements) const {
    return fma2(elements, scale, zero, T{});
  }
};

// Eight codes of a row, in kBits / 4 words, as 16 bytes of T.
template <class T, class Tkv>
__device__ __forceinline__ uint4 expand_eight(const uint32_t* words, PairScale<T, Tkv> scale) {
  using Expand = OrderedExpander<T, Tkv>;
  uint32_t elements[4];
#pragma unroll
  for (int first = 0; first < 4; first += Expand::kPairs) {
    uint32_t pairs[Expand::kPairs];
    Expand::expand(pairs, words[first / Expand::kPairs]);
#pragma unroll
    for (int p = 0; p < Expand::kPairs; ++p) {
      elements[first + p] = scale.apply(pairs[p]);
    }
  }
  return {elements[0], elements[1], elements[2], elements[3]};
}

}  // namespace attn::sm80
