// SPDX-License-Identifier: Apache-2.0
// The codes of a block of keys from rows that lie anywhere, by 16-byte asynchronous copies: what
// TMA does for a box, with the same swizzle.
#pragma once

#include "attn/async_copies.cuh"
#include "attn/recomputed.cuh"
#include "attn/sm90/arguments.h"
#include "attn/sm90/loader_source.cuh"
#include "attn/sm90/shared_storage.cuh"

namespace attn::sm90 {

// A quantised cache whose blocks are no boxes. By one warp; lane l finds rows l, l + 32 .. of a
// block, and 8 lanes copy a row, 128 bytes at a time. Rows behind the end of the sequence keep the
// codes that lie there: any code stands for a number.
template <class Traits>
class GatheredCodes : public LoaderSource {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;
  using Cache = typename Traits::Cache;
  using Work = sm90::Work<Traits::kRowGroups>;
  using Part = const char* RowAddress::*;

  static constexpr int kRows = (Traits::kCtaS + 31) / 32;  // that a lane finds
  static constexpr int kRowBytes = Traits::Kv::template kRowBytes<Traits::kHeadDim>;

 public:
  __device__ __forceinline__ GatheredCodes(Storage& storage, const Arguments<T>& arguments)
      : storage_(storage), params_(arguments.params) {}

  __device__ __forceinline__ bool leads() const { return lane() == 0; }
  __device__ __forceinline__ bool in_leading_warp() const { return true; }

  // Once all lanes have read what the signal gives away.
  __device__ __forceinline__ bool signals() const {
    __syncwarp();
    return lane() == 0;
  }

  __device__ __forceinline__ void begin_tile(int work_slot) {
    work_slot_ = work_slot;
    first_key_ = first_seen_key<Traits>(work().item, params_);
  }

  __device__ __forceinline__ void load_keys(int block, int slot) {
    copy(&RowAddress::k, storage_.k[slot].panel, storage_.k_full[slot], block);
  }

  __device__ __forceinline__ void load_values(int block, int slot) {
    copy(&RowAddress::v, storage_.v[slot].panel, storage_.v_full[slot], block);
  }

 private:
  __device__ __forceinline__ const Work& work() const { return storage_.work[work_slot_]; }
  __device__ __forceinline__ static int lane() { return recomputed(threadIdx.x) % 32; }

  template <class Panel, int kPanels>
  __device__ __forceinline__ void copy(Part part,
                                       Panel (&panels)[kPanels],
                                       Barrier& full,
                                       int block) {
    const int rows = min(Traits::kCtaS, work().item.k_len - block * Traits::kCtaS);
    unsigned long long address[kRows];
    find_rows(address, part, block, rows);
    const int chunk = lane() % 8;
    const int group = lane() / 8;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll 1
      for (int first = 0; first < 32; first += 4) {
        const int row = i * 32 + first + group;
        const char* const source =
            reinterpret_cast<const char*>(__shfl_sync(0xffffffffu, address[i], first + group));
        const uint32_t target = shared_address(&panels[0]) + row * 128 + ((chunk ^ row % 8) << 4);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          const int byte = panel * 128 + chunk * 16;
          if (row < rows && byte < kRowBytes) {
            copy_async_16(target + panel * static_cast<int>(sizeof(Panel)), source + byte);
          }
        }
      }
    }
    arrive_after_copies(full);
  }

  __device__ __forceinline__ void find_rows(unsigned long long (&address)[kRows],
                                            Part part,
                                            int block,
                                            int rows) const {
    const Cache cache = Cache::make(params_, work().sequence, work().kv_head);
    typename Cache::Entry entries[kRows] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i * 32 + lane() < rows) {
        // In front of a window entries may be wild: such a row gets that of a key which is seen.
        entries[i] = cache.entry(max(block * Traits::kCtaS + i * 32 + lane(), first_key_));
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int token = block * Traits::kCtaS + i * 32 + lane();
      address[i] =
          reinterpret_cast<unsigned long long>(cache.row(params_, token, entries[i]).*part);
    }
  }

  Storage& storage_;
  const AttentionParams<T>& params_;
  // Of the tile being loaded.
  int work_slot_ = 0;
  int first_key_ = 0;  // that some row sees
};

}  // namespace attn::sm90
