// SPDX-License-Identifier: Apache-2.0
// The element types of a KV cache, and how a row of each lies in memory.
//
//   T itself       the elements
//   Int8, Int4     unsigned codes, and for each row (a token of a KV head, K and V apart) a pair of
//                  T, first the scale:             x = code * scale + zero
//                  Byte i of Int4 has element 2i in its low nibble, element 2i + 1 in its high one.
//   E4m3           8-bit floats: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinity, 0x7f
//                  and 0xff are NaN, which writers keep and attention reads as 480, the next size:
//                                                  x = code * k_scale or v_scale
#pragma once

#include "attn/types.h"

namespace attn {

struct Int8 {};
struct Int4 {};
struct E4m3 {};

template <class T, class Tkv>
struct KvTraits {
  static_assert(sizeof(Tkv) == 0, "a cache holds elements of T, Int8, Int4 or E4m3");
};

namespace detail {

template <KvType Type, int Bits, bool HasPairs>
struct KvTraitsBase {
  static constexpr KvType kType = Type;
  static constexpr int kBits = Bits;  // of an element
  static constexpr bool kIsQuantised = Type != KvType::kSame;
  static constexpr bool kHasPairs = HasPairs;  // (scale, zero) of each row
  // Codes go from 0 to this.
  static constexpr int kLevels = HasPairs ? (1 << Bits) - 1 : 0;

  // Bytes of a row.
  template <int kElements>
  static constexpr int kRowBytes = kElements * Bits / 8;
};

}  // namespace detail

template <class T>
struct KvTraits<T, T> : detail::KvTraitsBase<KvType::kSame, 8 * sizeof(T), false> {};
template <class T>
struct KvTraits<T, Int8> : detail::KvTraitsBase<KvType::kInt8, 8, true> {};
template <class T>
struct KvTraits<T, Int4> : detail::KvTraitsBase<KvType::kInt4, 4, true> {};
template <class T>
struct KvTraits<T, E4m3> : detail::KvTraitsBase<KvType::kE4m3, 8, false> {};

}  // namespace attn
