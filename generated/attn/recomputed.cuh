// SPDX-License-Identifier: Apache-2.0
// What the compiler is not to compute ahead of time.
#pragma once

namespace attn {

// The same value, as if it were new: what is made of it is computed where it is used, instead of
// ahead of a loop at the price of a register throughout.
template <class Value>
__device__ __forceinline__ Value recomputed(Value value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ const char* recomputed(const char* address) {
  asm("" : "+l"(address));
  return address;
}

}  // namespace attn
