// SPDX-License-Identifier: Apache-2.0
// From eight elements to what a cache keeps of them; tests/quantiser.py is the same in numpy.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/sm80/dequantise.cuh"

namespace attn::sm80 {

// Eight codes side by side, the first in the low bits.
template <int kBits>
struct alignas(kBits) Codes {
  uint32_t words[kBits / 4];
};

__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Element i of those that lie side by side in words.
__device__ __forceinline__ float element(const uint32_t* words, int i, half) {
  return to_float(reinterpret_cast<const half*>(words)[i]);
}

// One instruction each: a bf16 is the upper half of its float.
__device__ __forceinline__ float element(const uint32_t* words, int i, __nv_bfloat16) {
  return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
}

// The least T that is not below x.
__device__ __forceinline__ half rounded_up(float x, half) { return __float2half_ru(x); }
__device__ __forceinline__ __nv_bfloat16 rounded_up(float x, __nv_bfloat16) {
  return __float2bfloat16_ru(x);
}

// Eight elements of a row as loaded: 16 bytes.
template <class T>
union Elements {
  uint4 vector;
  uint32_t words[4];

  __device__ __forceinline__ Elements() : vector{} {}
};

// What a lane has of a row: pieces lane, lane + kLanes, ...
template <class T, int kLanes, int kSteps>
struct RowPieces {
  Elements<T> steps[kSteps];

  __device__ __forceinline__ static int piece(int step, int lane) { return step * kLanes + lane; }

  // Whether a row of so many pieces has that one.
  template <int kPieces>
  __device__ __forceinline__ static bool has(int step, int lane) {
    return (step + 1) * kLanes <= kPieces || piece(step, lane) < kPieces;
  }
};

// --- extremes -----------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t infinities(half) { return 0x7c007c00; }
__device__ __forceinline__ uint32_t infinities(__nv_bfloat16) { return 0x7f807f80; }

// (min x, -max x) of a piece: one half of a word each.
template <class T>
__device__ __forceinline__ uint32_t extremes_of_piece(const Elements<T>& x) {
  constexpr uint32_t kSigns = 0x80008000;
  uint32_t least = x.words[0];
  uint32_t least_negated = x.words[0] ^ kSigns;
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    least = min2(least, x.words[i], T{});
    least_negated = min2(least_negated, x.words[i] ^ kSigns, T{});
  }
  return min2(permute_bytes<0x5410>(least, least_negated),
              permute_bytes<0x7632>(least, least_negated),
              T{});
}

// (min x, -max x) of a row of so many pieces, in all of its lanes, so that both take one shuffle.
template <int kPieces, class T, int kLanes, int kSteps>
__device__ __forceinline__ uint32_t extremes(const RowPieces<T, kLanes, kSteps>& x, int lane) {
  uint32_t both = infinities(T{});
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (x.template has<kPieces>(step, lane)) {
      both = min2(both, extremes_of_piece(x.steps[step]), T{});
    }
  }
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    both = min2(both, __shfl_xor_sync(0xffffffffu, both, other), T{});
  }
  return both;
}

// --- integers -----------------------------------------------------------------------------------

// How a row becomes integer codes.
//   zero    = min x
//   scale   = (max x - min x) (1 / kLevels)  rounded up to T: no code is above kLevels
//   inverse = 1 / scale                      0 where all x are one, or so near that 1 / scale is
//                                            no float: then every code is 0
template <class T>
struct RowScale {
  T scale;
  T zero;
  float inverse;

  // (scale, zero) as they lie in the cache.
  __device__ __forceinline__ uint32_t pair() const {
    alignas(4) const T both[2] = {scale, zero};
    return *reinterpret_cast<const uint32_t*>(both);
  }

  // From (min x, -max x).
  template <int kLevels>
  __device__ __forceinline__ static RowScale make(const uint32_t& extremes) {
    constexpr float kLeastNormal = 1.17549435e-38f;  // 2^-126
    const T* const both = reinterpret_cast<const T*>(&extremes);
    const float smallest = to_float(both[0]) + 0.0f;  // no -0
    const float largest = -to_float(both[1]);
    RowScale row;
    row.zero = static_cast<T>(smallest);
    row.scale = rounded_up((largest - smallest) * (1.0f / kLevels), T{});
    const float scale = to_float(row.scale);
    if (scale < kLeastNormal) {
      row.scale = static_cast<T>(0.0f);
    }
    row.inverse = scale < kLeastNormal ? 0.0f : __frcp_rn(scale);
    return row;
  }
};

// code = round((x - zero) * inverse), ties to even. The sum with 1.5 * 2^23 rounds the exact
// product to a whole number, which is the low byte.
__device__ __forceinline__ uint32_t integer_code(float x, float zero, float inverse) {
  constexpr float kMagic = 12582912.0f;
  return __float_as_uint(__fmaf_rn(x - zero, inverse, kMagic));
}

// --- e4m3 ---------------------------------------------------------------------------------------

// The lesser of two; NaN where one is.
__device__ __forceinline__ float min_or_nan(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(least) : "f"(a), "f"(b));
  return least;
}

// The size of the e4m3 nearest to x, ties to even, in the bits 20 to 26; those below are of no
// meaning, those above are 0. What is above 448 becomes 448, NaN stays NaN.
//
// Times 2^(7 - 127) a float has the exponent of the e4m3 in its own place, and is denormal where
// the e4m3 is: its bits are then rounded to 20 fewer, and a carry moves into the exponent. What is
// denormal loses bits there first, the last of which are 2^-20 of the e4m3's.
__device__ __forceinline__ uint32_t e4m3_size(float x) {
  constexpr float kLargest = 448.0f;
  constexpr float kScale = 7.52316385e-37f;  // 2^-120
  constexpr uint32_t kNan = 0x7fu << 20;
  const uint32_t bits = __float_as_uint(min_or_nan(fabsf(x), kLargest) * kScale);
  return min(bits + ((bits >> 20) & 1) + 0x7ffffu, kNan);
}

// The bytes of four sizes: the upper halves of two in one word have theirs in bits 4 to 10.
__device__ __forceinline__ uint32_t e4m3_bytes(const uint32_t (&sizes)[4]) {
  const uint32_t even = permute_bytes<0x7632>(sizes[0], sizes[2]) >> 4;
  const uint32_t odd = permute_bytes<0x7632>(sizes[1], sizes[3]) << 4;
  return (even & 0x007f007f) | (odd & 0x7f007f00);
}

// --- eight codes --------------------------------------------------------------------------------

// The low bytes of four words.
__device__ __forceinline__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return permute_bytes<0x5410>(permute_bytes<0x0040>(a, b), permute_bytes<0x0040>(c, d));
}

template <int kBits, class T>
__device__ __forceinline__ Codes<kBits> integer_codes(const Elements<T>& x,
                                                      const RowScale<T>& row) {
  const float zero = to_float(row.zero);
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes[i] = integer_code(element(x.words, i, T{}), zero, row.inverse);
  }
  if constexpr (kBits == 8) {
    return {low_bytes(codes[0], codes[1], codes[2], codes[3]),
            low_bytes(codes[4], codes[5], codes[6], codes[7])};
  } else {
    return {low_bytes(codes[0], codes[2], codes[4], codes[6]) |
            low_bytes(codes[1], codes[3], codes[5], codes[7]) << 4};
  }
}

// `inverse`, above 0, is 1 / scale of the head.
template <class T>
__device__ __forceinline__ Codes<8> e4m3_codes(const Elements<T>& x, float inverse) {
  Codes<8> result;
#pragma unroll
  for (int word = 0; word < 2; ++word) {
    uint32_t sizes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sizes[i] = e4m3_size(element(x.words, 4 * word + i, T{}) * inverse);
    }
    const uint32_t signs = permute_bytes<0x7531>(x.words[2 * word], x.words[2 * word + 1]);
    result.words[word] = and_or(signs, 0x80808080, e4m3_bytes(sizes));
  }
  return result;
}

}  // namespace attn::sm80
