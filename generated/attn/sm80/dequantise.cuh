// SPDX-License-Identifier: Apache-2.0
// What all need who turn codes into 16-bit elements in registers: instructions that sm_80 has, and
// the factors that belong to heads.
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

// The lesser ones of two pairs of elements; a number where one of two is NaN.
__device__ __forceinline__ uint32_t min2(uint32_t a, uint32_t b, half) {
  uint32_t least;
  asm("min.f16x2 %0, %1, %2;\n" : "=r"(least) : "r"(a), "r"(b));
  return least;
}

__device__ __forceinline__ uint32_t min2(uint32_t a, uint32_t b, __nv_bfloat16) {
  uint32_t least;
  asm("min.bf16x2 %0, %1, %2;\n" : "=r"(least) : "r"(a), "r"(b));
  return least;
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

// --- factors of whole heads ---------------------------------------------------------------------

// An e4m3 is this many times the element of T that expand() makes of it (ordered_codes.cuh).
template <class T>
inline constexpr float kE4m3Factor = 1.0f;

template <>
inline constexpr float kE4m3Factor<half> = 256.0f;  // 2^(15 - 7)

// What an element of K or V stands for, where that is the same for all tokens of a KV head.
template <class T, class Tkv>
__device__ __forceinline__ float factor_of(const float* scales, int stride, int kv_head) {
  if constexpr (KvTraits<T, Tkv>::kType == KvType::kE4m3) {
    const float scale = scales == nullptr ? 1.0f : scales[kv_head * stride];
    return kE4m3Factor<T> * scale;
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
