// SPDX-License-Identifier: Apache-2.0
// From eight elements to what a cache keeps of them; tests/quantiser.py is the same in numpy.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/arithmetic.cuh"
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

// The least T that is not below x, which is not below 0.
__device__ __forceinline__ float rounded_up(float x, half) {
  return __half2float(__float2half_ru(x));
}

// That of a NaN may be 0.
__device__ __forceinline__ float rounded_up(float x, __nv_bfloat16) {
  return __uint_as_float((__float_as_uint(x) + 0xffffu) & 0xffff0000u);
}

// Two floats that are elements, `low` in the low half.
__device__ __forceinline__ uint32_t pack_exact(float low, float high, half) {
  return pack(low, high, half{});
}

__device__ __forceinline__ uint32_t pack_exact(float low, float high, __nv_bfloat16) {
  return permute_bytes<0x7632>(__float_as_uint(low), __float_as_uint(high));
}

// Eight elements of a row as loaded: 16 bytes.
template <class T>
union Elements {
  uint4 vector;
  uint32_t words[4];

  __device__ __forceinline__ Elements() : vector{} {}
};

// What a lane has of a row: pieces lane, lane + kLanes, ..., or so many neighbours.
template <class T, int kLanes, int kSteps, bool kAreNeighbours = false>
struct RowPieces {
  Elements<T> steps[kSteps];

  __device__ __forceinline__ static int piece(int step, int lane) {
    return kAreNeighbours ? lane * kSteps + step : step * kLanes + lane;
  }

  // Whether a row of so many pieces has that one.
  template <int kPieces>
  __device__ __forceinline__ static bool has(int step, int lane) {
    return (kAreNeighbours ? kSteps : step + 1) * kLanes <= kPieces || piece(step, lane) < kPieces;
  }
};

// The greater ones of two pairs of elements; a number where one of two is NaN.
__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b, half) {
  uint32_t greatest;
  asm("max.f16x2 %0, %1, %2;\n" : "=r"(greatest) : "r"(a), "r"(b));
  return greatest;
}

__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b, __nv_bfloat16) {
  uint32_t greatest;
  asm("max.bf16x2 %0, %1, %2;\n" : "=r"(greatest) : "r"(a), "r"(b));
  return greatest;
}

// --- extremes -----------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t infinities(half) { return 0x7c007c00; }
__device__ __forceinline__ uint32_t infinities(__nv_bfloat16) { return 0x7f807f80; }

constexpr uint32_t kSigns = 0x80008000;

// The least and the greatest of some elements, those at even and those at odd places apart.
template <class T>
struct Extremes {
  uint32_t least;
  uint32_t greatest;

  __device__ __forceinline__ static Extremes of_none() {
    return {infinities(T{}), infinities(T{}) ^ kSigns};
  }

  __device__ __forceinline__ void add(const Elements<T>& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      least = min2(least, x.words[i], T{});
      greatest = max2(greatest, x.words[i], T{});
    }
  }

  // (min x, -max x): both are least, so that one shuffle brings both.
  __device__ __forceinline__ uint32_t joined() const {
    const uint32_t negated = greatest ^ kSigns;
    return min2(permute_bytes<0x5410>(least, negated), permute_bytes<0x7632>(least, negated), T{});
  }
};

// (min x, -max x) of a row of so many pieces, in all of its lanes.
template <int kPieces, class T, int kLanes, int kSteps, bool kAreNeighbours>
__device__ __forceinline__ uint32_t extremes(const RowPieces<T, kLanes, kSteps, kAreNeighbours>& x,
                                             int lane) {
  Extremes<T> own = Extremes<T>::of_none();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (x.template has<kPieces>(step, lane)) {
      own.add(x.steps[step]);
    }
  }
  uint32_t both = own.joined();
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
//                                            no float, or so far that scale is none: then every
//                                            code is 0
template <class T>
struct RowScale {
  float scale;
  float zero;
  float inverse;

  // (scale, zero) as they lie in the cache.
  __device__ __forceinline__ uint32_t pair() const { return pack_exact(scale, zero, T{}); }

  // From (min x, -max x).
  template <int kLevels>
  __device__ __forceinline__ static RowScale make(uint32_t extremes) {
    constexpr float kLeastNormal = 1.17549435e-38f;  // 2^-126
    constexpr float kLargest = 3.40282347e38f;
    RowScale row;
    row.zero = element(&extremes, 0, T{}) + 0.0f;  // no -0
    const float range = -element(&extremes, 1, T{}) - row.zero;
    row.scale = rounded_up(range * (1.0f / kLevels), T{});
    const bool is_normal = row.scale >= kLeastNormal;
    row.inverse = is_normal && row.scale <= kLargest ? inverse_of(row.scale) : 0.0f;
    row.scale = is_normal ? row.scale : 0.0f;
    return row;
  }

  // 1 / scale, to nearest, of a normal one: no finite scale is so large that it would be denormal.
  //   r = 1 / scale, nearly      1 / scale = r + r (1 - scale r)
  __device__ __forceinline__ static float inverse_of(float scale) {
    float nearly;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(nearly) : "f"(scale));
    return __fmaf_rn(nearly, __fmaf_rn(-scale, nearly, 1.0f), nearly);
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
// With an exponent that is 127 - 7 less, a float has that of the e4m3 in its own place; it is
// rounded to 20 bits fewer, and a carry moves into the exponent. What is denormal there is counted
// in steps of 2^-9: those are the last place of a sum with 2^14.
__device__ __forceinline__ uint32_t e4m3_size(float x) {
  constexpr float kLargest = 448.0f;
  constexpr float kLeastNormal = 0.015625f;  // 2^-6
  constexpr float kTwoTo14 = 16384.0f;
  constexpr uint32_t kBiases = (127u - 7u) << 23;
  constexpr uint32_t kNan = 0x7fu << 20;
  const float size = min_or_nan(fabsf(x), kLargest);
  const uint32_t bits = __float_as_uint(size) - kBiases;
  const uint32_t normal = bits + ((bits >> 20) & 1) + 0x7ffffu;
  const uint32_t denormal = __float_as_uint(size + kTwoTo14) << 20;
  return min(size < kLeastNormal ? denormal : normal, kNan);
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
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes[i] = integer_code(element(x.words, i, T{}), row.zero, row.inverse);
  }
  if constexpr (kBits == 8) {
    return {low_bytes(codes[0], codes[1], codes[2], codes[3]),
            low_bytes(codes[4], codes[5], codes[6], codes[7])};
  } else {
    return {low_bytes(codes[0], codes[2], codes[4], codes[6]) |
            low_bytes(codes[1], codes[3], codes[5], codes[7]) << 4};
  }
}

// The e4m3 nearest to four floats, ties to even, saturated; NaN becomes 0x7f. For sm_89 and later,
// which have an instruction for two.
__device__ __forceinline__ uint32_t four_converted(const float (&x)[4]) {
  uint32_t codes;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(codes)
      : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]));
  return codes;
}

// The same in ten instructions each. `signs`: in bit 7 of each byte.
__device__ __forceinline__ uint32_t four_computed(const float (&x)[4], uint32_t signs) {
  const uint32_t sizes[4] = {e4m3_size(x[0]), e4m3_size(x[1]), e4m3_size(x[2]), e4m3_size(x[3])};
  const uint32_t bytes = e4m3_bytes(sizes);
  const uint32_t nans = bytes + 0x01010101;  // in bit 7 of each byte
  return and_or(signs & ~nans, 0x80808080, bytes);
}

// NV_IF_ELSE_TARGET is the toolkit's (cuda_fp16.h brings nv/target, and NVRTC has it).
__device__ __forceinline__ uint32_t four_e4m3(const float (&x)[4], uint32_t signs) {
  NV_IF_ELSE_TARGET(
      NV_PROVIDES_SM_89, (return four_converted(x);), (return four_computed(x, signs);))
}

// `inverse`, above 0, is 1 / scale of the head.
template <class T>
__device__ __forceinline__ Codes<8> e4m3_codes(const Elements<T>& x, float inverse) {
  Codes<8> result;
#pragma unroll
  for (int word = 0; word < 2; ++word) {
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scaled[i] = element(x.words, 4 * word + i, T{}) * inverse;
    }
    const uint32_t signs = permute_bytes<0x7531>(x.words[2 * word], x.words[2 * word + 1]);
    result.words[word] = four_e4m3(scaled, signs);
  }
  return result;
}

}  // namespace attn::sm80
