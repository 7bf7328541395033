// SPDX-License-Identifier: Apache-2.0
// Where the rows of K and V lie, looked up ahead of the warps that copy them.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/key_source.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// One warp that walks through the tiles as the loader does, a block of keys ahead of it, and writes
// the addresses of rows to the tables in shared memory: copies then follow each other without the
// arithmetic between them. Lane i takes rows i, i + 32, ... of a block of keys.
template <class Traits>
class AddressWriter {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

 public:
  __device__ __forceinline__ AddressWriter(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        params_(arguments.params),
        steps_(block_len_of<Traits>(arguments.params)) {}

  __device__ __forceinline__ void run() {
    wait_for_former_launch();  // which may write the block table
    uint32_t phase = 0;
    while (true) {
      storage_.work_full.wait(phase);  // the work is visible
      if (warp_uniform(storage_.work[phase].item.end_block) == 0) {
        return;
      }
      write_tile(storage_.work[phase]);
      phase ^= 1;
    }
  }

 private:
  static constexpr int kRows = (Traits::kCtaS + 31) / 32;  // of a lane

  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }

  __device__ __forceinline__ void write_tile(const Work<Traits::kRowGroups>& work) {
    const int first_block = warp_uniform(work.item.first_block);
    int block = warp_uniform(work.item.end_block) - 1;
    const int k_len = warp_uniform(work.item.k_len);
    const Cache cache =
        Cache::make(params_, warp_uniform(work.sequence), warp_uniform(work.kv_head));
    first_entry_ = first_seen_block<Traits>(work.item, params_, steps_);
    __syncwarp();  // all have read the work
    if (lane() == 0) {
      storage_.work_empty.arrive();  // the next may take the place of the one before this
    }
    // Behind the end of the sequence there may be no entry, or a wild one.
    const int existing = min(Traits::kCtaS, k_len - block * Traits::kCtaS);
    for_rows([&](int i) {
      token_[i] = steps_.place(block * Traits::kCtaS + row(i));
      read_entry(cache, i, existing);
    });
    // In the order in which they are copied: V runs one block behind K.
    const char* values[kRows];
#pragma unroll 1
    for (bool is_last = true; block >= first_block; --block, is_last = false) {
      write(storage_.tables.k, key_phase_, [&](int i) {
        return cache.row_of_block(params_, token_[i].row, entry_[i]).k;
      });
      if (!is_last) {
        write(storage_.tables.v, value_phase_, [&](int i) { return values[i]; });
      }
      for_rows([&](int i) {
        values[i] = cache.row_of_block(params_, token_[i].row, entry_[i]).v;
        token_[i] = steps_.before(token_[i]);
      });
      if (block > first_block) {
        for_rows([&](int i) { read_entry(cache, i, Traits::kCtaS); });
      }
    }
    write(storage_.tables.v, value_phase_, [&](int i) { return values[i]; });
  }

  // Of a block of keys.
  __device__ __forceinline__ static int row(int i) { return i * 32 + lane(); }

  template <class Body>
  __device__ __forceinline__ static void for_rows(Body body) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      body(i);
    }
  }

  // Starts to read what the block table says of a row, if it is one of the first `count`. In front
  // of a window it may say anything: such a row gets an address where something is.
  __device__ __forceinline__ void read_entry(const Cache& cache, int i, int count) {
    if (row(i) < count) {
      entry_[i] = cache.entry_of_block(max(token_[i].block, first_entry_));
    }
  }

  // The addresses of this lane's rows.
  template <class Address>
  __device__ __forceinline__ void write(RowTable<Traits>& table, uint32_t& phase, Address address) {
    table.read.wait(phase ^ 1);  // all copies of what lay there are issued
    phase ^= 1;
    for_rows([&](int i) {
      if (row(i) < Traits::kCtaS) {
        table.row[row(i)] = address(i);
      }
    });
    table.written.arrive();
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const BlockSteps<Traits::kCtaS> steps_;
  uint32_t key_phase_ = 0;  // of the tables
  uint32_t value_phase_ = 0;
  int first_entry_ = 0;  // the first that a row of the tile asks for

  // This lane's rows of a block of keys.
  TokenPlace token_[kRows];
  typename Cache::Entry entry_[kRows] = {};
};

}  // namespace attn::sm90
