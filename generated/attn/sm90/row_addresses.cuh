// SPDX-License-Identifier: Apache-2.0
// Where the rows of K and V lie, looked up ahead of the warps that copy them.
#pragma once

#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/dependent_launch.cuh"
#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

// The rows of one KV head. What does not depend on the row is computed once a tile and kept in
// registers, behind the compiler's back: it would rather compute it again for every row.
template <class Traits, CacheType kCache = Traits::Config::kCache>
struct HeadRows;

template <class Traits>
struct HeadRows<Traits, CacheType::kPaged> {
  using T = typename Traits::T;

  const char* k_pool;  // at this head
  const char* v_pool;

  __device__ __forceinline__ static HeadRows make(const AttentionParams<T>& params, int kv_head) {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return {at_head(paged.k, kv_head, paged.k_head_stride),
            at_head(paged.v, kv_head, paged.v_head_stride)};
  }

  __device__ __forceinline__ const char* k(const AttentionParams<T>& params,
                                           int id,
                                           int row) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return row_of(k_pool, id, paged.k_block_stride, row, paged.k_token_stride);
  }

  __device__ __forceinline__ const char* v(const AttentionParams<T>& params,
                                           int id,
                                           int row) const {
    const PagedIteratorParams& paged = params.paged_iter_params;
    return row_of(v_pool, id, paged.v_block_stride, row, paged.v_token_stride);
  }

 private:
  __device__ __forceinline__ static const char* at_head(const void* pool,
                                                        int kv_head,
                                                        int64_t stride) {
    return recomputed(static_cast<const char*>(pool) +
                      kv_head * stride * static_cast<int64_t>(sizeof(T)));
  }

  // Ids and rows are not negative: a product of 32 and 64 bits is two instructions then.
  __device__ __forceinline__ static const char* row_of(
      const char* pool, int id, int64_t block_stride, int row, int64_t token_stride) {
    const uint64_t blocks = static_cast<uint32_t>(id) * static_cast<uint32_t>(sizeof(T));
    const uint64_t rows = static_cast<uint32_t>(row) * static_cast<uint32_t>(sizeof(T));
    return pool + blocks * block_stride + rows * token_stride;
  }
};

template <class Traits>
struct HeadRows<Traits, CacheType::kBlock> {
  using T = typename Traits::T;

  int64_t k_offset;  // bytes from a block's address to the rows of this layer and head
  int64_t v_offset;

  // A block: [kv_head][K, V][token][head_dim]
  __device__ __forceinline__ static HeadRows make(const AttentionParams<T>& params, int kv_head) {
    const BlockIteratorParams& block = params.block_iter_params;
    const int64_t bytes = static_cast<int64_t>(block.block_len) * Traits::Cache::kRowBytes;
    const int64_t k_offset = recomputed(block.layer_offset + kv_head * 2 * bytes);
    return {k_offset, recomputed(k_offset + bytes)};
  }

  __device__ __forceinline__ const char* k(const AttentionParams<T>&,
                                           int64_t block,
                                           int row) const {
    return row_of(block + k_offset, row);
  }

  __device__ __forceinline__ const char* v(const AttentionParams<T>&,
                                           int64_t block,
                                           int row) const {
    return row_of(block + v_offset, row);
  }

 private:
  __device__ __forceinline__ static const char* row_of(int64_t first, int row) {
    const uint64_t rows = static_cast<uint32_t>(row);
    return reinterpret_cast<const char*>(first) + rows * Traits::Cache::kRowBytes;
  }
};

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
    const HeadRows<Traits> rows = HeadRows<Traits>::make(params_, warp_uniform(work.kv_head));
    entries_ = Cache::make(params_, warp_uniform(work.sequence), 0).entries();
    __syncwarp();  // all have read the work
    if (lane() == 0) {
      storage_.work_empty.arrive();  // the next may take the place of the one before this
    }
    // Behind the end of the sequence there may be no entry, or a wild one.
    const int existing = min(Traits::kCtaS, k_len - block * Traits::kCtaS);
    for_rows([&](int i) {
      token_[i] = steps_.place(block * Traits::kCtaS + row(i));
      read_entry(i, existing);
    });
    // In the order in which they are copied: V runs one block behind K.
    const char* values[kRows];
#pragma unroll 1
    for (bool is_last = true; block >= first_block; --block, is_last = false) {
      write(storage_.tables.k, key_phase_, [&](int i) {
        return rows.k(params_, entry_[i], token_[i].row);
      });
      if (!is_last) {
        write(storage_.tables.v, value_phase_, [&](int i) { return values[i]; });
      }
      for_rows([&](int i) {
        values[i] = rows.v(params_, entry_[i], token_[i].row);
        token_[i] = steps_.before(token_[i]);
      });
      if (block > first_block) {
        for_rows([&](int i) { read_entry(i, Traits::kCtaS); });
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

  // Starts to read what the block table says of a row, if it is one of the first `count`.
  __device__ __forceinline__ void read_entry(int i, int count) {
    if (row(i) < count) {
      entry_[i] = entries_[token_[i].block];
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
    __syncwarp();  // the whole warp has written
    if (lane() == 0) {
      table.written.arrive();
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const BlockSteps<Traits::kCtaS> steps_;
  uint32_t key_phase_ = 0;  // of the tables
  uint32_t value_phase_ = 0;

  // This lane's rows of a block of keys.
  TokenPlace token_[kRows];
  typename Cache::Entry entry_[kRows] = {};
  const typename Cache::Entry* entries_ = nullptr;  // what the block table says of the sequence
};

}  // namespace attn::sm90
