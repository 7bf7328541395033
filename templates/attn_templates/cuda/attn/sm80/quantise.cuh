// SPDX-License-Identifier: Apache-2.0
// From eight elements to what a cache keeps of them; tests/quantiser.py is the same in numpy.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/kv_type.h"

namespace attn::sm80 {

// The bits of kBits / 32 words of a cache: eight elements.
template <int kBits>
struct alignas(kBits) Codes {
  uint32_t words[kBits / 4];
};

__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// The least T that is not below x.
__device__ __forceinline__ half rounded_up(float x, half) { return __float2half_ru(x); }
__device__ __forceinline__ __nv_bfloat16 rounded_up(float x, __nv_bfloat16) {
  return __float2bfloat16_ru(x);
}

// Eight elements of a row as loaded: 16 bytes.
template <class T>
union Elements {
  uint4 words;
  T values[8];

  __device__ __forceinline__ Elements() {}
};

// How a row becomes integer codes.
//   zero    = min x
//   scale   = (max x - min x) / kLevels      rounded up to T: no code is clipped
//   inverse = 1 / scale                      0 where all x are one, or so near that 1 / scale is
//                                            no float: then every code is 0
template <class T>
struct RowScale {
  T scale;
  T zero;
  float inverse;

  template <int kLevels>
  __device__ __forceinline__ static RowScale make(float smallest, float largest) {
    constexpr float kLeastNormal = 1.17549435e-38f;  // 2^-126
    RowScale row;
    row.zero = static_cast<T>(smallest);
    row.scale = rounded_up(__fdiv_rn(largest - smallest, static_cast<float>(kLevels)), T{});
    const float scale = to_float(row.scale);
    if (scale < kLeastNormal) {
      row.scale = static_cast<T>(0.0f);
    }
    row.inverse = scale < kLeastNormal ? 0.0f : __fdiv_rn(1.0f, scale);
    return row;
  }
};

// code = round((x - zero) * inverse), ties to even, at most kLevels. The sum with 1.5 * 2^23 rounds
// the exact product to a whole number and leaves it in the low bits.
template <int kLevels>
__device__ __forceinline__ uint32_t integer_code(float x, float zero, float inverse) {
  constexpr float kMagic = 12582912.0f;
  const float sum = __fmaf_rn(x - zero, inverse, kMagic);
  return __float_as_uint(fminf(sum, kMagic + kLevels));
}

// The e4m3 nearest to x, ties to even, as its eight bits. What is above 448 becomes 448, NaN stays
// NaN.
__device__ __forceinline__ uint32_t e4m3_code(float x) {
  constexpr float kLargest = 448.0f;
  constexpr float kLeastNormal = 0.015625f;   // 2^-6
  constexpr float kDenormalMagic = 16384.0f;  // its last bit is 2^-9, that of a denormal e4m3
  const float size = fminf(fabsf(x), kLargest);
  // Normal numbers: round the 23 bits of the mantissa to 3, a carry moves into the exponent.
  const uint32_t bits = __float_as_uint(size);
  const uint32_t normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3);
  const uint32_t denormal =
      __float_as_uint(size + kDenormalMagic) - __float_as_uint(kDenormalMagic);
  const uint32_t magnitude = size < kLeastNormal ? denormal : normal;
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
  return x != x ? 0x7f : sign | magnitude;
}

// Eight codes side by side, the first in the low bits.
template <int kBits>
__device__ __forceinline__ Codes<kBits> packed(const uint32_t (&codes)[8]) {
  constexpr int kPerWord = 32 / kBits;
  Codes<kBits> result;
#pragma unroll
  for (int word = 0; word < 8 / kPerWord; ++word) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) {
      bits |= (codes[word * kPerWord + i] & ((1u << kBits) - 1)) << (i * kBits);
    }
    result.words[word] = bits;
  }
  return result;
}

template <int kBits, class T>
__device__ __forceinline__ Codes<kBits> integer_codes(const Elements<T>& x,
                                                      const RowScale<T>& row) {
  const float zero = to_float(row.zero);
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes[i] = integer_code<(1 << kBits) - 1>(to_float(x.values[i]), zero, row.inverse);
  }
  return packed<kBits>(codes);
}

template <class T>
__device__ __forceinline__ Codes<8> e4m3_codes(const Elements<T>& x, float inverse) {
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes[i] = e4m3_code(to_float(x.values[i]) * inverse);
  }
  return packed<8>(codes);
}

}  // namespace attn::sm80
