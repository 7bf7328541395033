// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys from rows that lie anywhere, by 16-byte asynchronous copies: what TMA
// does for a box, with the same swizzle.
#pragma once

#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

// --- asynchronous copies ------------------------------------------------------------------------

// Copies 16 bytes, or writes zeros where the source does not exist and is not read then.
__device__ __forceinline__ void copy_async(uint32_t shared, const char* global, bool exists) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}

// Closes the group of copies that this thread has issued since the last commit.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending of this thread's groups are still in flight.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// --- the source ---------------------------------------------------------------------------------

// A paged cache of any block_len, or a block cache. By kGatherWarps warps, the first of which
// leads; each takes kGatherRows rows of every block. Within a warp 8 lanes copy a row, 128 bytes at
// a time.
//
// wgmma reads shared memory through another proxy than the copies write it: a writer has to wait
// for its copies and to fence before it signals. So that it need not wait for memory each time, a
// load is published one load later, or when the loader has to wait for something else.
template <class Traits>
class GatheredRows {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

 public:
  static constexpr bool kDefers = true;

  __device__ __forceinline__ GatheredRows(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage), params_(arguments.params) {}

  __device__ __forceinline__ bool leads() const { return threadIdx.x == 32; }
  __device__ __forceinline__ bool in_leading_warp() const { return warp() == 0; }

  // One lane of each warp, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return lane() == 0;
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    work_slot_ = work_slot;
    look_up(work().item.end_block - 1);
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    write_addresses(block);
    if (block > work().item.first_block) {
      look_up(block - 1);
    }
    copy_rows<Traits::kHeadDim>(
        &RowAddress::k, storage_.k[slot].panel, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    copy_rows<Traits::kHeadDimV>(
        &RowAddress::v, storage_.v[slot].panel, storage_.v_full[slot], block);
  }

  // Tells the consumers of the last load, once it has arrived.
  __device__ __forceinline__ void publish() {
    if (unpublished_ != 0) {
      wait_copies<0>();
      signal_unpublished();
    }
  }

 private:
  __device__ __forceinline__ const Work& work() const { return storage_.work[work_slot_]; }

  __device__ __forceinline__ static int warp() {
    return warp_uniform(recomputed(threadIdx.x) / 32) - 1;
  }
  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }
  __device__ __forceinline__ static int first_row() { return warp() * Traits::kGatherRows; }

  // The addresses of this warp's rows. Blocks alternate between two tables, because V of a block is
  // copied when the addresses of the next are there already.
  __device__ __forceinline__ RowAddress* table(int block) const {
    return storage_.tables.rows[warp()][block % 2u];
  }

  // Starts to read the entries of rows lane, lane + 32 of this warp.
  __device__ __forceinline__ void look_up(int block) {
    const Cache cache = Cache::make(params_, work().sequence, work().kv_head);
    const int first_token = block * Traits::kCtaS + first_row();
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      const int row = i * 32 + lane();
      if (row < Traits::kGatherRows && first_token + row < work().item.k_len) {
        entries_[i] = cache.entry(first_token + row);
      }
    }
  }

  __device__ __forceinline__ void write_addresses(int block) {
    const Cache cache = Cache::make(params_, work().sequence, work().kv_head);
    const int first_token = block * Traits::kCtaS + first_row();
    RowAddress* const addresses = table(block);
    __syncwarp();  // nobody reads the addresses that lay here
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      const int row = i * 32 + lane();
      if (row < Traits::kGatherRows && first_token + row < work().item.k_len) {
        addresses[row] = cache.row(params_, first_token + row, entries_[i]);
      }
    }
    __syncwarp();  // the addresses are visible to the warp
  }

  // Rows behind the end of the sequence become zeros: 0 * NaN would spoil the output.
  template <int kColumns, class Panel, int kPanels>
  __device__ __forceinline__ void copy_rows(const char* RowAddress::* part,
                                            Panel (&panels)[kPanels],
                                            Barrier& full,
                                            int block) {
    constexpr int kPanelBytes = sizeof(Panel);
    const RowAddress* const addresses = table(block);
    const int chunk = lane() % 8;
    const int rows = min(Traits::kGatherRows, Traits::kCtaS - first_row());
    const int existing = work().item.k_len - block * Traits::kCtaS - first_row();
    const uint32_t first = shared_address(&panels[0]) + first_row() * 128;
#pragma unroll 1
    for (int row = lane() / 8; row < rows; row += 4) {
      const bool exists = row < existing;
      // A place that may be read, though nothing is.
      const char* source = reinterpret_cast<const char*>(params_.q);
      if (exists) {
        source = addresses[row].*part + chunk * 16;
      }
      const uint32_t target = first + row * 128 + ((chunk ^ ((first_row() + row) % 8)) << 4);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        if ((panel + 1) * Traits::kPanelColumns <= kColumns ||
            panel * Traits::kPanelColumns + chunk * 8 < kColumns) {
          copy_async(target + panel * kPanelBytes,
                     exists ? source + panel * Traits::kPanelColumns * sizeof(T) : source,
                     exists);
        }
      }
    }
    commit_copies();
    if (unpublished_ != 0) {
      wait_copies<1>();  // the load before this one is complete
      signal_unpublished();
    }
    unpublished_ = shared_address(&full);
  }

  __device__ __forceinline__ void signal_unpublished() {
    fence_async_proxy();
    __syncwarp();  // all lanes have fenced
    if (lane() == 0) {
      arrive_at(unpublished_);
    }
    unpublished_ = 0;
  }

  static constexpr int kLookups = (Traits::kGatherRows + 31) / 32;

  Storage& storage_;
  const AttentionParams<T>& params_;
  uint32_t unpublished_ = 0;  // shared address of the `full` of the last load; 0: none

  int work_slot_ = 0;  // of the tile being loaded

  // What the table of blocks says of this lane's rows of the block of keys that is loaded next.
  typename Cache::Entry entries_[kLookups] = {};
};

}  // namespace attn::sm90
