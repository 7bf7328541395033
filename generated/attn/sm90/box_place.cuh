// SPDX-License-Identifier: Apache-2.0
// Where in a tensor map a box of K or V lies.
#pragma once

#include "attn/types.h"

namespace attn::sm90 {

// Two coordinates of its map, from the innermost dimension to the outermost:
//   paged   {columns, kv heads, rows of a block, blocks}: row and block
//   block   {columns, units of 16 bytes, rows of a box, units of 2^34 bytes}: the two parts of an
//           address, because the map covers all memory from address kMapBase on
struct BoxPlace {
  int minor;
  int major;
};

constexpr int64_t kMapBase = 128;
constexpr int kAddressBits = 30;  // of an address in units of 16 bytes: those in `minor`

__device__ __forceinline__ BoxPlace place_of(int64_t address) {
  const int64_t units = (address - kMapBase) >> 4;
  return {static_cast<int>(units & ((1 << kAddressBits) - 1)),
          static_cast<int>(units >> kAddressBits)};
}

}  // namespace attn::sm90
