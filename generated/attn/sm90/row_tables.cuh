// SPDX-License-Identifier: Apache-2.0
// Shared memory of rows that are gathered: where they lie.
#pragma once

#include "attn/sm90/barriers.cuh"

namespace attn::sm90 {

// Where the rows of a block of K or V lie. Written by one warp, read by those that copy; every lane
// arrives for what it has written or read itself.
template <class Traits>
struct RowTable {
  const char* row[Traits::kCtaS];
  Barrier written;
  Barrier read;

  __device__ __forceinline__ void init_barriers() {
    written.init(32);
    read.init(32 * Traits::kCopyWarps);
  }
};

// One of each: while K of a block is copied, V of the block after it is looked up.
template <class Traits, bool kGathers = Traits::Cache::kGathered && !Traits::Kv::kIsQuantised>
struct RowTables {
  __device__ __forceinline__ void init_barriers() {}
};

template <class Traits>
struct RowTables<Traits, true> {
  RowTable<Traits> k;
  RowTable<Traits> v;

  __device__ __forceinline__ void init_barriers() {
    k.init_barriers();
    v.init_barriers();
  }
};

}  // namespace attn::sm90
