// SPDX-License-Identifier: Apache-2.0
// The copies of rows of Q, K and V from global memory into shared tiles.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm80/prefill_traits.cuh"

namespace attn::sm80 {

// Starts the copy of the rows of Q. Rows behind the last become zero, so that what lies there in
// memory, NaN included, never meets the tensor cores.
template <class Config>
__device__ __forceinline__ void copy_queries(
    typename PrefillTraits<Config>::QueryTileStorage& query,
    const AttentionParams<typename Config::T>& params,
    const QueryTile& tile) {
  using Traits = PrefillTraits<Config>;
  using Tile = typename Traits::QueryTileStorage;
  constexpr int kChunks = Traits::kHeadDim / 8;
  const int first = threadIdx.x / 8;
  const int chunk = threadIdx.x % 8;
  const auto* const queries = params.q + tile.first_token * params.stride +
                              static_cast<int64_t>(tile.head) * Traits::kHeadDim + chunk * 8;
#pragma unroll
  for (int row = first; row < first + Traits::kCtaQ; row += Traits::kThreads / 8) {
    const uint32_t to = shared_address(&query) + Tile::chunk_offset(row, chunk);
#pragma unroll
    for (int panel = 0; panel * 8 < kChunks; ++panel) {
      if (panel * 8 + 8 <= kChunks || panel * 8 + chunk < kChunks) {
        copy_async_16_or_zero(
            to + panel * 128, queries + row * params.stride + panel * 64, row < tile.rows);
      }
    }
  }
}

// Moves tiles of K and V of one sequence and head into a ring of kStages slots, tile t to slot
// t % kStages.
//
// A thread copies kRows consecutive rows of K and of V, its share: of each the 16-byte chunk of one
// column in every panel of 128 bytes. A gathered cache says where a row is by an entry of its block
// table. Where blocks hold whole shares, the rows of a share lie at equal distances, and its eight
// threads have the same entry. Otherwise each of them has the entry of one row, and they give each
// other the addresses.
template <class Config>
class TileStream {
  using Traits = PrefillTraits<Config>;
  using Params = AttentionParams<typename Config::T>;
  using Storage = PrefillStorage<Config>;
  using Cache = typename Traits::Cache;

 public:
  using Entry = typename Cache::Entry;

  // storage.work must be visible.
  __device__ __forceinline__ TileStream(Storage& storage, const Params& params)
      : storage_(storage), params_(params) {}

  // The entry of a thread's row of a tile. Entries of keys that no row sees, behind the last one
  // and in front of a window, may be wild: that of a key which is seen is read instead.
  __device__ __forceinline__ Entry look_up(int tile) const {
    if constexpr (Cache::kGathered) {
      const auto& work = storage_.work;
      const Share share;
      const int key = tile * kCtaS + share.first + share.chunk % kRows;
      return work.cache.entry(min(max(key, work.first_key), work.visible.k_len - 1));
    } else {
      return {};
    }
  }

  // Starts the copies of a tile that has been looked up, as a group. A tile in front of the range
  // becomes zeros: that is cheaper, once, than to ask. To start them again does no harm: the same
  // bytes go to the same place, which nobody reads yet.
  __device__ __forceinline__ void copy(int tile, Entry entry) const {
    const Share share;
    const int first_key = tile * kCtaS + share.first;
    const int rows = tile >= storage_.work.keys.begin ? storage_.work.visible.k_len - first_key : 0;
    const int own = has_whole_shares() ? 0 : share.chunk % kRows;
    const RowAddress from = chunks_of(first_key + own, entry, share);
    if constexpr (Traits::Kv::kHasPairs) {
      copy_pairs(share, first_key, rows, entry);
    }
    const auto key_place = place_of(key_target(tile), share);
    const auto value_place = place_of(value_target(tile), share);
    if (has_whole_shares()) {
      const RowStride stride = storage_.work.cache.stride(params_);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        copy_row<kKeyChunks>(key_place, row, from.k + row * stride.k, row < rows);
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        copy_row<kValueChunks>(value_place, row, from.v + row * stride.v, row < rows);
      }
    } else {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        copy_row<kKeyChunks>(key_place, row, of_row(from.k, row, share), row < rows);
        copy_row<kValueChunks>(value_place, row, of_row(from.v, row, share), row < rows);
      }
    }
    copy_async_commit();
  }

 private:
  static constexpr int kCtaS = Traits::kCtaS;
  static constexpr int kRows = kCtaS / (Traits::kThreads / 8);
  static constexpr int kKeyChunks = Traits::Kv::template kRowBytes<Traits::kHeadDim> / 16;
  static constexpr int kValueChunks = Traits::Kv::template kRowBytes<Traits::kHeadDimV> / 16;
  static_assert(kCtaS % (Traits::kThreads / 8) == 0, "every thread copies as many rows");
  static_assert(kRows <= 8 && (kRows & (kRows - 1)) == 0,
                "a share begins at a multiple of its rows, and has a thread for each");

  // Recomputed: dozens of addresses would otherwise live across the loop over keys.
  struct Share {
    unsigned thread = recomputed(threadIdx.x);
    int first = thread / 8 * kRows;  // row of the tile
    int chunk = thread % 8;
  };

  __device__ __forceinline__ static int slot_of(int tile) {
    return static_cast<unsigned>(tile) % Traits::kSlots;
  }

  // Where rows as they lie in the cache go.
  __device__ __forceinline__ auto& key_target(int tile) const {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.key_codes;
    } else {
      return storage_.key[slot_of(tile)];
    }
  }

  __device__ __forceinline__ auto& value_target(int tile) const {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.value_codes;
    } else {
      return storage_.value[slot_of(tile)];
    }
  }

  // Whether every share lies in one block. From the parameters, which are at hand sooner than what
  // shared memory knows.
  __device__ __forceinline__ bool has_whole_shares() const {
    if constexpr (!Cache::kGathered || kRows == 1) {
      return true;
    } else if constexpr (Config::kCache == CacheType::kBlock) {
      return params_.block_iter_params.block_len % kRows == 0;
    } else {
      return params_.paged_iter_params.block_len % kRows == 0;
    }
  }

  // Where a thread's chunks in panel 0 of a row are.
  __device__ __forceinline__ RowAddress chunks_of(int key, Entry entry, const Share& share) const {
    RowAddress row;
    if constexpr (Cache::kGathered) {
      row = storage_.work.cache.row(params_, key, entry);
    } else {
      row = storage_.work.cache.row(params_, key);
    }
    // Recomputed: what is added to them for each row would otherwise be multiplied into them.
    return {recomputed(row.k + share.chunk * 16), recomputed(row.v + share.chunk * 16)};
  }

  // Where a thread's share goes.
  template <class Target>
  struct Place {
    uint32_t origin;  // shared address of the chunk in panel 0 of row 0
    int chunk;

    // A share begins at a multiple of its rows, so row i turns the swizzle of row 0 by i.
    __device__ __forceinline__ uint32_t of_row(int i) const {
      return (origin ^ (i * 16)) + i * Target::kPitchBytes;
    }
  };

  template <class Target>
  __device__ __forceinline__ static Place<Target> place_of(Target& target, const Share& share) {
    return {shared_address(&target) + Target::chunk_offset(share.first, share.chunk), share.chunk};
  }

  // Zeros where the row has no key: what lies there in memory, NaN included, must not meet the
  // tensor cores.
  template <int kChunks, class Target>
  __device__ __forceinline__ static void copy_row(const Place<Target>& place,
                                                  int row,
                                                  const char* from,
                                                  bool has_key) {
#pragma unroll
    for (int panel = 0; panel * 8 < kChunks; ++panel) {
      if (panel * 8 + 8 <= kChunks || panel * 8 + place.chunk < kChunks) {
        copy_async_16_or_zero(place.of_row(row) + panel * 128, from + panel * 128, has_key);
      }
    }
  }

  // This thread's chunk of a row of the share, from the thread whose own row it is.
  __device__ __forceinline__ static const char* of_row(const char* own,
                                                       int row,
                                                       const Share& share) {
    const auto address = reinterpret_cast<unsigned long long>(own - share.chunk * 16);
    return reinterpret_cast<const char*>(__shfl_sync(0xffffffffu, address, row, 8)) +
           share.chunk * 16;
  }

  // Each row's (scale, zero) pairs, by the thread that has the row's entry. Rows without a key get
  // zeros.
  __device__ __forceinline__ void copy_pairs(const Share& share,
                                             int first_key,
                                             int rows,
                                             Entry entry) const {
    if (share.chunk < kRows) {
      const int row = share.first + share.chunk;
      const bool has_key = share.chunk < rows;
      const RowAddress pair = has_key
                                  ? storage_.pair_rows.pair(params_, first_key + share.chunk, entry)
                                  : RowAddress{nullptr, nullptr};
      copy_async_4_or_zero(shared_address(&storage_.key_pairs[row]), pair.k, has_key);
      copy_async_4_or_zero(shared_address(&storage_.value_pairs[row]), pair.v, has_key);
    }
  }

  Storage& storage_;
  const Params& params_;
};

}  // namespace attn::sm80
