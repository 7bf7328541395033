// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys from rows that lie anywhere, by 16-byte asynchronous copies: what TMA
// does for a box, with the same swizzle.
#pragma once

#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

// --- asynchronous copies ------------------------------------------------------------------------

// 16 bytes, of which the first `bytes` are read and the others are zero.
__device__ __forceinline__ void copy_async(uint32_t shared, const char* global, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global),
               "r"(bytes)
               : "memory");
}

// Arrives at the barrier when all copies that this thread has issued are complete.
__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(&barrier.word))
      : "memory");
}

// --- the source ---------------------------------------------------------------------------------

// A paged cache of any block_len, or a block cache. By kGatherWarps warps, the first of which
// leads; each takes kGatherRows rows of every block. Within a warp 8 lanes copy a row, 128 bytes at
// a time.
//
// Nobody here waits for a copy: each thread's last one signals. wgmma reads shared memory through
// another proxy than the copies write it, so the consumers fence after they have waited. Behind the
// end of the sequence, rows of K are left out, since their scores are masked, and rows of V are
// zero: 0 * NaN would spoil the output.
template <class Traits>
class GatheredRows {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

 public:
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
    if (!looked_ahead_) {
      look_up(work(), work().item.end_block - 1);
    }
    looked_ahead_ = false;
  }

  // If the work after this tile is known already, starts the look-up for it.
  __device__ __forceinline__ void look_ahead(int next_slot) {
    if (__all_sync(0xffffffffu, storage_.work_full.ended(next_slot))) {
      const Work& next = storage_.work[next_slot];
      if (warp_uniform(next.item.end_block) > 0) {
        look_up(next, next.item.end_block - 1);
        looked_ahead_ = true;
      }
    }
  }

  __device__ __forceinline__ void prepare(int block) {
    write_addresses(block);
    if (block > work().item.first_block) {
      look_up(work(), block - 1);
    }
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    copy_rows<Traits::kHeadDim, false>(
        &RowAddress::k, storage_.k[slot].panel, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    copy_rows<Traits::kHeadDimV, true>(
        &RowAddress::v, storage_.v[slot].panel, storage_.v_full[slot], block);
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
  __device__ __forceinline__ void look_up(const Work& work, int block) {
    const Cache cache = Cache::make(params_, work.sequence, work.kv_head);
    const int first_token = block * Traits::kCtaS + first_row();
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      const int row = i * 32 + lane();
      if (row < Traits::kGatherRows && first_token + row < work.item.k_len) {
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

  template <int kColumns, bool kZeroFilled, class Panel, int kPanels>
  __device__ __forceinline__ void copy_rows(const char* RowAddress::* part,
                                            Panel (&panels)[kPanels],
                                            Barrier& full,
                                            int block) {
    const RowAddress* const addresses = table(block);
    const int chunk = lane() % 8;
    const int first = lane() / 8;
    const int existing = work().item.k_len - block * Traits::kCtaS - first_row();
    const int most = min(Traits::kGatherRows, Traits::kCtaS - first_row());
    const int rows = kZeroFilled ? most : min(most, existing);
    const uint32_t target = shared_address(&panels[0]) + (first_row() + first) * 128;
    // first_row() is a multiple of 4, and so is what follows: bit 2 of a row alternates.
    const int swizzled = (chunk ^ ((first_row() + first) % 8)) << 4;
    // Addresses of a few rows are read before the first is used.
#pragma unroll 1
    for (int i = 0; i * 4 + first < rows; i += kBatch) {
      const char* source[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int row = (i + j) * 4 + first;
        source[j] = row < existing ? addresses[min(row, Traits::kGatherRows - 1)].*part + chunk * 16
                                   : reinterpret_cast<const char*>(params_.q);  // not read
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int row = (i + j) * 4 + first;
        if (row < rows) {
          const bool exists = !kZeroFilled || row < existing;
          const uint32_t place = target + (i + j) * 512 + (swizzled ^ ((i + j) % 2 << 6));
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) {
            if ((panel + 1) * Traits::kPanelColumns <= kColumns ||
                panel * Traits::kPanelColumns + chunk * 8 < kColumns) {
              copy_async(place + panel * static_cast<int>(sizeof(Panel)),
                         source[j] + panel * Traits::kPanelColumns * sizeof(T),
                         exists ? 16 : 0);
            }
          }
        }
      }
    }
    arrive_after_copies(full);
  }

  static constexpr int kBatch = Traits::kConsumers > 2 ? 2 : 4;
  static constexpr int kLookups = (Traits::kGatherRows + 31) / 32;

  Storage& storage_;
  const AttentionParams<T>& params_;

  int work_slot_ = 0;          // of the tile being loaded
  bool looked_ahead_ = false;  // entries_ belong to the tile after this

  // What the table of blocks says of this lane's rows of the block of keys that is loaded next.
  typename Cache::Entry entries_[kLookups] = {};
};

}  // namespace attn::sm90
