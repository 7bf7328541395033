// SPDX-License-Identifier: Apache-2.0
// K and V of a block of keys from rows that lie anywhere, by 16-byte asynchronous copies: what TMA
// does for a box, with the same swizzle.
#pragma once

#include "attn/sm90/async_copies.cuh"
#include "attn/sm90/block_steps.cuh"
#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

// A paged cache of any block_len, or a block cache. By kGatherWarps warps, the first of which
// leads; each takes kGatherRows rows of every block of keys, fewer the last. Within a warp 8 lanes
// copy a row, 128 bytes at a time: lanes of row group g = lane / 8 the rows 4 i + g.
//
// One warp issues all of its copies in a row, so the instructions between them are what a block of
// keys takes: addresses lie in a table, and a whole block is copied without a comparison.
//
// wgmma reads shared memory through another proxy than the copies write it, and the fence between
// them is up to the thread that wrote. So a load is signalled by its warps, once they have issued
// the next one (whose slot comes back from consumers that do not need this load for it), and the
// last of a tile at once. Behind the end of the sequence, rows of K are left out, since their
// scores are masked, and rows of V are zero: 0 * NaN would spoil the output.
template <class Traits>
class GatheredRows {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;

 public:
  __device__ __forceinline__ GatheredRows(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage),
        params_(arguments.params),
        steps_(block_len_of<Traits>(arguments.params)),
        warp_(warp_uniform(threadIdx.x / 32) - 1) {}

  __device__ __forceinline__ bool leads() const { return threadIdx.x == 32; }
  __device__ __forceinline__ bool in_leading_warp() const { return warp_ == 0; }

  // One lane of each warp, once all have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return lane() == 0;
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    const auto& work = storage_.work[work_slot];
    first_block_ = warp_uniform(work.item.first_block);
    k_len_ = warp_uniform(work.item.k_len);
    cache_ = Cache::make(params_, warp_uniform(work.sequence), warp_uniform(work.kv_head));
    if (!looked_ahead_) {
      look_up_last(work);
    }
    looked_ahead_ = false;
  }

  // If the work after this tile is known already, starts the look-up for it.
  __device__ __forceinline__ void look_ahead(int next_slot) {
    if (__all_sync(0xffffffffu, storage_.work_full.ended(next_slot))) {
      const Work<Traits::kRowGroups>& next = storage_.work[next_slot];
      if (warp_uniform(next.item.end_block) > 0) {
        look_up_last(next);
        looked_ahead_ = true;
      }
    }
  }

  __device__ __forceinline__ void prepare(int block) {
    write_addresses(block);
    if (block > first_block_) {
      look_up_before();
    }
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    copy_rows<Traits::kHeadDim, false>(
        &RowAddress::k, storage_.k[slot].panel, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    copy_rows<Traits::kHeadDimV, true>(
        &RowAddress::v, storage_.v[slot].panel, storage_.v_full[slot], block);
    if (block == first_block_) {
      signal<0>();
      unsignalled_ = nullptr;
    }
  }

 private:
  // Copies of a lane in each panel: rows of its group. The last warp has fewer.
  static constexpr int kCopies = Traits::kGatherRows / 4;
  static constexpr int kLeastCopies =
      (Traits::kCtaS - (Traits::kGatherWarps - 1) * Traits::kGatherRows) / 4;
  // Of a lane: rows lane, lane + 32 of the warp.
  static constexpr int kLookups = (Traits::kGatherRows + 31) / 32;
  // Addresses that are read ahead of the first copy, as registers allow.
  static constexpr int kBatch = Traits::kConsumers > 2 ? 2 : 6;

  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }
  __device__ __forceinline__ int first_row() const { return warp_ * Traits::kGatherRows; }

  // Of this warp, in a block of keys.
  __device__ __forceinline__ int row_count() const {
    return min(Traits::kGatherRows, Traits::kCtaS - first_row());
  }

  // The addresses of this warp's rows. Blocks alternate between two tables, because V of a block is
  // copied when the addresses of the next are there already.
  __device__ __forceinline__ RowAddress* table(int block) const {
    return storage_.tables.rows[warp_][block % 2u];
  }

  // --- where the rows lie ----------------------------------------------------------------------

  // The last block of keys of a tile, some rows of which may lie behind the end of the sequence.
  __device__ __forceinline__ void look_up_last(const Work<Traits::kRowGroups>& work) {
    const int first_token = (work.item.end_block - 1) * Traits::kCtaS + first_row();
    entries_ = Cache::make(params_, work.sequence, 0).entries();
    next_row_num_ = warp_uniform(min(row_count(), work.item.k_len - first_token));
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      next_[i].token = steps_.place(first_token + i * 32 + lane());
    }
    read_entries();
  }

  // The block of keys before the one that was looked up: it is whole.
  __device__ __forceinline__ void look_up_before() {
    next_row_num_ = row_count();
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      next_[i].token = steps_.before(next_[i].token);
    }
    read_entries();
  }

  // Starts to read what the block table says.
  __device__ __forceinline__ void read_entries() {
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      if (i * 32 + lane() < next_row_num_) {
        next_[i].entry = entries_[next_[i].token.block];
      }
    }
  }

  __device__ __forceinline__ void write_addresses(int block) {
    RowAddress* const addresses = table(block);
    __syncwarp();  // nobody reads the addresses that lay here
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      const int row = i * 32 + lane();
      if (row < next_row_num_) {
        addresses[row] = cache_.row_of_block(params_, next_[i].token.row, next_[i].entry);
      }
    }
    __syncwarp();  // the addresses are visible to the warp
  }

  // --- copies ----------------------------------------------------------------------------------

  // Rows of K or V, `part` of the addresses, into a slot.
  template <int kColumns, bool kZeroFilled, class Panel, int kPanels>
  __device__ __forceinline__ void copy_rows(const char* RowAddress::* part,
                                            Panel (&panels)[kPanels],
                                            Barrier& full,
                                            int block) {
    const int existing = k_len_ - block * Traits::kCtaS - first_row();
    if (existing >= row_count()) {
      copy_batches<kColumns, Rows::kWhole>(part, panels, block, existing);
    } else {
      copy_batches<kColumns, kZeroFilled ? Rows::kZeroFilled : Rows::kLeftOut>(
          part, panels, block, existing);
    }
    commit_copies();
    if (unsignalled_ != nullptr) {
      signal<1>();
    }
    unsignalled_ = &full;
  }

  // Says that the load before the last kOpen ones is there.
  template <int kOpen>
  __device__ __forceinline__ void signal() {
    wait_copies<kOpen>();
    fence_async_proxy();
    __syncwarp();  // the whole warp has fenced
    if (lane() == 0) {
      unsignalled_->arrive();
    }
  }

  // What becomes of rows behind the end of the sequence.
  enum class Rows { kWhole, kLeftOut, kZeroFilled };

  template <int kColumns, Rows kRows, class Panel, int kPanels>
  __device__ __forceinline__ void copy_batches(const char* RowAddress::* part,
                                               Panel (&panels)[kPanels],
                                               int block,
                                               int existing) {
    const int group = lane() / 8;
    const int chunk = lane() % 8;
    const RowAddress* const addresses = table(block) + group;
    const uint32_t target = shared_address(&panels[0]) + (first_row() + group) * 128;
    // first_row() is a multiple of 4, and so is what follows: bit 2 of a row alternates.
    const uint32_t even = target + ((chunk ^ ((first_row() + group) % 8)) << 4);
    const uint32_t odd = target + ((chunk ^ ((first_row() + group) % 8) ^ 4) << 4);
    // Unrolled, all offsets are constants; blocks that end early are rare.
    constexpr int kAhead = kRows == Rows::kWhole ? kBatch : 1;
#pragma unroll(kRows == Rows::kWhole ? kCopies : 1)
    for (int begin = 0; begin < kCopies; begin += kAhead) {
      const char* source[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = min(begin + j, kCopies - 1);
        const bool exists = kRows == Rows::kWhole || 4 * i + group < existing;
        source[j] = exists ? addresses[4 * i].*part + chunk * 16
                           : reinterpret_cast<const char*>(params_.q);  // not read
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = begin + j;
        const bool exists = kRows == Rows::kWhole || 4 * i + group < existing;
        const bool is_mine = i < kLeastCopies || (i < kCopies && 4 * i < row_count());
        if (is_mine && (exists || kRows == Rows::kZeroFilled)) {
          copy_row<kColumns, Panel, kPanels>(
              (i % 2 == 0 ? even : odd) + i * 512, source[j], exists ? 16 : 0);
        }
      }
    }
  }

  // A lane's 16 bytes of each panel of a row.
  template <int kColumns, class Panel, int kPanels>
  __device__ __forceinline__ void copy_row(uint32_t target, const char* source, int bytes) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      if ((panel + 1) * Traits::kPanelColumns <= kColumns ||
          panel * Traits::kPanelColumns + lane() % 8 * 8 < kColumns) {
        copy_async(target + panel * static_cast<int>(sizeof(Panel)),
                   source + panel * Traits::kPanelColumns * sizeof(T),
                   bytes);
      }
    }
  }

  // What the block table says of a row, on its way.
  struct LookUp {
    TokenPlace token{};
    typename Cache::Entry entry{};
  };

  Storage& storage_;
  const AttentionParams<T>& params_;
  const BlockSteps<Traits::kCtaS> steps_;
  const int warp_;

  Barrier* unsignalled_ = nullptr;  // of the last load

  // The tile being loaded.
  int first_block_ = 0;
  int k_len_ = 0;
  Cache cache_{};

  // Of the block before it, or (looked_ahead_) of the last of the tile after this.
  LookUp next_[kLookups];
  int next_row_num_ = 0;  // of this warp, that exist
  bool looked_ahead_ = false;
  const typename Cache::Entry* entries_ = nullptr;  // what the block table says of the sequence
};

}  // namespace attn::sm90
