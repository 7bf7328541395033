// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys from rows that lie anywhere, by 16-byte asynchronous copies: what TMA
// does for a box, with the same swizzle.
#pragma once

#include "attn/async_copies.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/loader_source.cuh"
#include "attn/sm90/row_addresses.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

// A paged cache of any block_len, or a block cache. By kCopyWarps warps behind the one that writes
// addresses, the first of which leads; each takes kCopyRows rows of every block of keys. A warp
// copies 8 rows at a time, 4 lanes a row, so that an address that a lane has read is good for two
// copies of every panel.
//
// wgmma reads shared memory through another proxy than the copies write it, and the fence between
// them is up to the thread that wrote. So each lane signals its part of a load: once it has issued
// half of the next one, sooner where that has to wait for a slot, and the last of a tile at once.
// Behind the end of the sequence, rows of K are left out, since their scores are masked, and rows
// of V are zero: 0 * NaN would spoil the output.
template <class Traits>
class GatheredRows : public LoaderSource {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

 public:
  __device__ __forceinline__ GatheredRows(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        params_(arguments.params),
        warp_(warp_uniform(threadIdx.x / 32) - kFirstWarp),
        row_(first_row() + lane() / 4 % 2 * 4 + lane() / 8),
        target_(row_ * 128 + ((chunk() ^ row_ % 8) << 4)) {}

  __device__ __forceinline__ bool leads() const { return threadIdx.x == 32 * kFirstWarp; }
  __device__ __forceinline__ bool in_leading_warp() const { return warp_ == 0; }

  // One lane of each warp, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return lane() == 0;
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    const Work<Traits::kRowGroups>& work = storage_.work[work_slot];
    first_block_ = warp_uniform(work.item.first_block);
    k_len_ = warp_uniform(work.item.k_len);
  }

  // Until a slot is free there is time to wait for the load before.
  __device__ __forceinline__ void wait_for_slot(const Barrier& empty, uint32_t phase) {
    if (!__any_sync(0xffffffffu, empty.ended(phase))) {
      signal();
    }
    empty.wait(phase);  // whoever reads has left the slot
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    copy_rows<Traits::kHeadDim, Rows::kLeftOut>(
        storage_.tables.k, key_phase_, storage_.k[slot].panel, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    copy_rows<Traits::kHeadDimV, Rows::kZeroFilled>(
        storage_.tables.v, value_phase_, storage_.v[slot].panel, storage_.v_full[slot], block);
    if (block == first_block_) {
      signal();
    }
  }

 private:
  static constexpr int kFirstWarp = 2;  // of the producers; the one before writes addresses
  static constexpr int kCopies = Traits::kCopyRows / 8;  // rows of a lane
  // Addresses that are read ahead of the first copy, as registers allow.
  static constexpr int kBatch = Traits::kConsumers > 2 ? 4 : kCopies;

  // What becomes of rows behind the end of the sequence; kWhole: there are none.
  enum class Rows { kWhole, kLeftOut, kZeroFilled };

  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }
  __device__ __forceinline__ static int chunk() { return lane() % 4; }  // a lane's first
  __device__ __forceinline__ int first_row() const { return warp_ * Traits::kCopyRows; }

  // --- copies ----------------------------------------------------------------------------------

  // This warp's rows of K or V into a slot.
  template <int kColumns, Rows kPartial, class Panel, int kPanels>
  __device__ __forceinline__ void copy_rows(RowTable<Traits>& table,
                                            uint32_t& phase,
                                            Panel (&panels)[kPanels],
                                            Barrier& full,
                                            int block) {
    table.written.wait(phase);  // the addresses are visible
    phase ^= 1;
    const int existing = k_len_ - block * Traits::kCtaS - first_row();
    if (existing >= Traits::kCopyRows) {
      copy_batches<kColumns, Rows::kWhole>(table.row, panels, existing);
    } else {
      copy_batches<kColumns, kPartial>(table.row, panels, existing);
    }
    copy_async_commit();
    table.read.arrive();
    unsignalled_ = shared_address(&full);
  }

  template <int kColumns, Rows kRows, class Panel, int kPanels>
  __device__ __forceinline__ void copy_batches(const char* const* addresses,
                                               Panel (&panels)[kPanels],
                                               int existing) {
    // Unrolled, all offsets are constants; blocks of keys that end early are rare.
    constexpr bool kWhole = kRows == Rows::kWhole;
    constexpr int kAhead = kWhole ? kBatch : 1;
    const char* const* const own = addresses + row_;
    const uint32_t near = shared_address(&panels[0]) + target_;
    const uint32_t far = near ^ 64;  // four chunks further, where the swizzle has put them
#pragma unroll(kWhole ? kCopies : 1)
    for (int begin = 0; begin < kCopies; begin += kAhead) {
      const char* source[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int row = 8 * (begin + j);
        const bool exists = kWhole || row_ - first_row() + row < existing;
        source[j] = exists ? own[row] + chunk() * 16
                           : reinterpret_cast<const char*>(params_.q);  // not read
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int row = 8 * (begin + j);
        const bool exists = kWhole || row_ - first_row() + row < existing;
        if (begin + j == kCopies / 2) {
          signal();
        }
        if (exists || kRows == Rows::kZeroFilled) {
          copy_row<kColumns, Panel, kPanels>(near + row * 128, far + row * 128, source[j], exists);
        }
      }
    }
  }

  // A lane's two chunks of each panel of a row.
  template <int kColumns, class Panel, int kPanels>
  __device__ __forceinline__ void copy_row(uint32_t near,
                                           uint32_t far,
                                           const char* source,
                                           bool exists) {
#pragma unroll
    for (int half = 0; half < 2 * kPanels; ++half) {
      constexpr int kHalf = Traits::kPanelColumns / 2;
      if ((half + 1) * kHalf <= kColumns || half * kHalf + chunk() * 8 < kColumns) {
        copy_async_16_or_zero(
            (half % 2 == 0 ? near : far) + half / 2 * static_cast<int>(sizeof(Panel)),
            source + half * kHalf * sizeof(T),
            exists);
      }
    }
  }

  // --- signals ---------------------------------------------------------------------------------

  // Says that the last load is there, once it is.
  __device__ __forceinline__ void signal() {
    if (unsignalled_ == 0) {
      return;
    }
    copy_async_wait<0>();
    fence_async_proxy();
    arrive_at(unsignalled_);  // each lane for its own: consumers may write zeros over it
    unsignalled_ = 0;
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  const int warp_;  // of those that copy
  // This lane's first. 8 lanes write at a time, chunks 0 to 3 of two rows: these are 4 apart, where
  // the swizzle has put the chunks of one where the other has none, so that no bank is asked twice.
  const int row_;
  const uint32_t target_;  // of its chunk of that row, in a slot

  uint32_t unsignalled_ = 0;  // address of the barrier of the last load; 0: signalled
  uint32_t key_phase_ = 0;    // of the tables
  uint32_t value_phase_ = 0;

  // The tile being loaded.
  int first_block_ = 0;
  int k_len_ = 0;
};

}  // namespace attn::sm90
