// SPDX-License-Identifier: Apache-2.0
// From codes to 16-bit elements in registers, by instructions that sm_80 has. Every element is
// exact.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attn/kv_type.h"
#include "attn/params.h"

namespace attn::sm80 {

// --- instructions -------------------------------------------------------------------------------

// Bytes of the pair (low, high) by their numbers, one hexadecimal digit each: 0 to 3 are those of
// `low`, 4 to 7 those of `high`.
template <uint32_t kSelector>
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;\n" : "=r"(bytes) : "r"(low), "r"(high), "n"(kSelector));
  return bytes;
}

// (a & b) | c, in one instruction even where b and c are constants.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
  return bits;
}

// Two elements: a * b + c, rounded once.
__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, half) {
  uint32_t sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, __nv_bfloat16) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// Two elements: a + b.
__device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b, half) {
  uint32_t sum;
  asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

__device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b, __nv_bfloat16) {
  constexpr uint32_t kOnes = 0x3f803f80;
  return fma2(a, kOnes, b, __nv_bfloat16{});
}

// --- codes --------------------------------------------------------------------------------------

// A word of a row has 2 n codes, n = kPairs. expand() makes n pairs of elements of them: pair p has
// element p in its low half and element p + n in its high half. This order is the cheapest to make,
// and it is that of a transposed fragment, where the high half of a word is of the next token.
//
//   x = (element + kCentre) * scale + zero         Int8, Int4
//   x = element * kFactor * scale                  E4m3
template <class T, class Tkv>
struct Expander;

// What integer expanders share: codes from 0 on, made symmetric so that they are exact in 8 bits.
template <int kBits>
struct IntegerCodes {
  static constexpr int kPairs = 16 / kBits;
  static constexpr int kCentre = 1 << (kBits - 1);
  static constexpr float kFactor = 1.0f;
};

// The byte c behind the byte 0x64 is the half 1024 + c.
template <>
struct Expander<half, Int8> : IntegerCodes<8> {
  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kBase = 0x64646464;
    constexpr uint32_t kMinus1152 = 0xe480e480;
    pairs[0] = add2(permute_bytes<0x4240>(word, kBase), kMinus1152, half{});
    pairs[1] = add2(permute_bytes<0x4341>(word, kBase), kMinus1152, half{});
  }
};

// A bf16 has room for 7 bits behind the byte 0x43: 128 + c % 128. The top bit of c decides what is
// taken off, and is made the number 128 or 256 in the same way:
//   c - 128 = (128 + c % 128) - (c < 128 ? 256 : 128)
template <>
struct Expander<__nv_bfloat16, Int8> : IntegerCodes<8> {
  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kBase = 0x43434343;
    constexpr uint32_t kMinusOnes = 0xbf80bf80;
    const uint32_t low = word & 0x7f7f7f7f;
    const uint32_t top = ~word & 0x80808080;
    pairs[0] = fma2(permute_bytes<0x4240>(top, kBase),
                    kMinusOnes,
                    permute_bytes<0x4240>(low, kBase),
                    __nv_bfloat16{});
    pairs[1] = fma2(permute_bytes<0x4341>(top, kBase),
                    kMinusOnes,
                    permute_bytes<0x4341>(low, kBase),
                    __nv_bfloat16{});
  }
};

// The low nibble c of a half that begins like 1024 is 1024 + c, the next nibble 1024 + 16 c.
template <>
struct Expander<half, Int4> : IntegerCodes<4> {
  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kBase = 0x64006400;
    constexpr uint32_t kMinus1032 = 0xe408e408;
    constexpr uint32_t kSixteenth = 0x2c002c00;
    constexpr uint32_t kMinus72 = 0xd480d480;
#pragma unroll
    for (int p = 0; p < kPairs; p += 2) {
      const uint32_t shifted = word >> (4 * p);
      pairs[p] = add2(and_or(shifted, 0x000f000f, kBase), kMinus1032, half{});
      pairs[p + 1] = fma2(and_or(shifted, 0x00f000f0, kBase), kSixteenth, kMinus72, half{});
    }
  }
};

// The nibble c at the end of a bf16 that begins like 128 is 128 + c.
template <>
struct Expander<__nv_bfloat16, Int4> : IntegerCodes<4> {
  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kBase = 0x43004300;
    constexpr uint32_t kMinus136 = 0xc308c308;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const uint32_t nibbles = and_or(word >> (4 * p), 0x000f000f, kBase);
      pairs[p] = add2(nibbles, kMinus136, __nv_bfloat16{});
    }
  }
};

// Sign, exponent and mantissa of an e4m3 in the place of those of T: the exponent then counts from
// T's bias. NaN becomes 480.
template <int kShift>
__device__ __forceinline__ uint32_t widened_e4m3(uint32_t high_bytes) {
  constexpr uint32_t kRest = 0x7f007f00 >> kShift;
  return and_or(high_bytes >> kShift, kRest, high_bytes & 0x80008000);
}

template <>
struct Expander<half, E4m3> {
  static constexpr int kPairs = 2;
  static constexpr float kFactor = 256.0f;  // 2^(15 - 7)

  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    pairs[0] = widened_e4m3<1>(word << 8);
    pairs[1] = widened_e4m3<1>(word);
  }
};

template <>
struct Expander<__nv_bfloat16, E4m3> {
  static constexpr int kPairs = 2;
  static constexpr float kFactor = 1.0f;

  // Times 2^(127 - 7), here: left for later, products would leave the range of float.
  __device__ __forceinline__ static void expand(uint32_t (&pairs)[kPairs], uint32_t word) {
    constexpr uint32_t kTwoTo120 = 0x7b807b80;
    constexpr uint32_t kMinusZeros = 0x80008000;
    pairs[0] = fma2(widened_e4m3<4>(word << 8), kTwoTo120, kMinusZeros, __nv_bfloat16{});
    pairs[1] = fma2(widened_e4m3<4>(word), kTwoTo120, kMinusZeros, __nv_bfloat16{});
  }
};

// --- factors of whole heads ---------------------------------------------------------------------

// What an element of K or V stands for, where that is the same for all tokens of a KV head.
template <class T, class Tkv>
__device__ __forceinline__ float factor_of(const float* scales, int stride, int kv_head) {
  if constexpr (KvTraits<T, Tkv>::kType == KvType::kE4m3) {
    const float scale = scales == nullptr ? 1.0f : scales[kv_head * stride];
    return Expander<T, Tkv>::kFactor * scale;
  } else {
    return 1.0f;
  }
}

template <class Config>
__device__ __forceinline__ float key_factor(const AttentionParams<typename Config::T>& params,
                                            int kv_head) {
  return factor_of<typename Config::T, typename Config::Tkv>(
      params.k_scale, params.kv_scale_stride, kv_head);
}

template <class Config>
__device__ __forceinline__ float value_factor(const AttentionParams<typename Config::T>& params,
                                              int kv_head) {
  return factor_of<typename Config::T, typename Config::Tkv>(
      params.v_scale, params.kv_scale_stride, kv_head);
}

}  // namespace attn::sm80
