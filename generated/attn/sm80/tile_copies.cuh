// SPDX-License-Identifier: Apache-2.0
// The copies of rows of Q, K and V from global memory into shared tiles.
#pragma once

#include "attn/sm80/prefill_traits.cuh"

namespace attn::sm80 {

// Which rows of a tile a thread copies.
enum class RowOrder {
  kStrided,      // every (kThreads / 8)-th: their places in shared memory are constants apart
  kConsecutive,  // they mostly lie in one block of the cache, and need one address
};

// What one thread copies of a tile: of kRows rows, the 16-byte chunks of one column in every panel
// of 128 bytes.
template <int kThreads, int kTileRows, int kChunks, RowOrder kOrder, class Tile>
struct CopyShare {
  static_assert(kTileRows % (kThreads / 8) == 0, "every thread copies as many rows");
  static constexpr int kRows = kTileRows / (kThreads / 8);
  static constexpr int kStep = kOrder == RowOrder::kStrided ? kThreads / 8 : 1;

  uint32_t tile;  // shared address
  int first;      // row
  int chunk;

  __device__ __forceinline__ explicit CopyShare(Tile& to) : tile(shared_address(&to)) {
    // Opaque: dozens of addresses would otherwise live across the loop over keys.
    const unsigned thread = opaque(threadIdx.x);
    first = thread / 8 * (kOrder == RowOrder::kStrided ? 1 : kRows);
    chunk = thread % 8;
  }

  __device__ __forceinline__ int row(int i) const { return first + i * kStep; }

  // Calls copy(to, from) for the chunks of its i-th row, the first of which is at `from`.
  template <class Copy>
  __device__ __forceinline__ void copy_row(int i, const char* from, Copy copy) const {
    const uint32_t to = tile + Tile::chunk_offset(row(i), chunk);
#pragma unroll
    for (int panel = 0; panel * 8 < kChunks; ++panel) {
      if (panel * 8 + 8 <= kChunks || panel * 8 + chunk < kChunks) {
        copy(to + panel * 128, from + panel * 128);
      }
    }
  }
};

// Starts the copies of a tile's rows. `source(row)` is the address of a row; rows from `rows` on
// become zero, so that what lies there in memory, NaN included, never meets the tensor cores.
template <int kThreads, int kTileRows, int kChunks, class Tile, class Source>
__device__ __forceinline__ void copy_some_rows(Tile& tile, int rows, Source source) {
  const CopyShare<kThreads, kTileRows, kChunks, RowOrder::kStrided, Tile> share(tile);
#pragma unroll
  for (int i = 0; i < share.kRows; ++i) {
    const int row = share.row(i);
    share.copy_row(i, source(row) + share.chunk * 16, [&](uint32_t to, const char* from) {
      copy_async_16_or_zero(to, from, row < rows);
    });
  }
}

// The same for rows that are all there. All addresses are read first: a copy that follows a load
// from shared memory at once costs three instructions more.
template <int kThreads, int kTileRows, int kChunks, class Tile, class Source>
__device__ __forceinline__ void copy_rows(Tile& tile, Source source) {
  const CopyShare<kThreads, kTileRows, kChunks, RowOrder::kStrided, Tile> share(tile);
  const char* sources[share.kRows];
#pragma unroll
  for (int i = 0; i < share.kRows; ++i) {
    sources[i] = source(share.row(i)) + share.chunk * 16;
  }
#pragma unroll
  for (int i = 0; i < share.kRows; ++i) {
    share.copy_row(i, sources[i], copy_async_16);
  }
}

// The same where the rows of a thread lie at equal distances; `stride` bytes lie between two rows
// of the tile.
template <int kThreads, int kTileRows, int kChunks, RowOrder kOrder, class Tile, class Source>
__device__ __forceinline__ void copy_rows_evenly(Tile& tile, int64_t stride, Source source) {
  const CopyShare<kThreads, kTileRows, kChunks, kOrder, Tile> share(tile);
  const char* from = source(share.first) + share.chunk * 16;
#pragma unroll
  for (int i = 0; i < share.kRows; ++i) {
    share.copy_row(i, from, copy_async_16);
    from += share.kStep * stride;
  }
}

// Starts the copy of the rows of Q.
template <class Config>
__device__ __forceinline__ void copy_queries(
    typename PrefillTraits<Config>::QueryTileStorage& query,
    const AttentionParams<typename Config::T>& params,
    const QueryTile& tile) {
  using Traits = PrefillTraits<Config>;
  const auto* const first = params.q + tile.first_token * params.stride +
                            static_cast<int64_t>(tile.head) * Traits::kHeadDim;
  copy_some_rows<Traits::kThreads, Traits::kCtaQ, Traits::kHeadDim / 8>(
      query, tile.rows, [&](int row) {
        return reinterpret_cast<const char*>(first + row * params.stride);
      });
}

// Moves tiles of K and V of one sequence and head into a ring of kStages slots, tile t to slot
// t % kStages.
//
// The rows of gathered caches have addresses of their own, which threads find for one another: each
// finds one (look_up) and shows it (publish); the two are apart so that the block table is read
// behind the arithmetic of a tile. An address serves a unit of 2^unit_shift keys: the rows that one
// thread copies, where block_len is a multiple of them, else one. So as many threads as a tile has
// keys find the addresses of 2^unit_shift tiles at a time. They may be used after the next barrier.
template <class Config>
class TileStream {
  using Traits = PrefillTraits<Config>;
  using Storage = PrefillStorage<Config>;
  static constexpr bool kGathered = Traits::Cache::kGathered;

 public:
  // storage.work must be visible.
  __device__ __forceinline__ TileStream(Storage& storage,
                                        const AttentionParams<typename Config::T>& params)
      : storage_(storage), params_(params) {}

  // Starts the copy of a tile, if the range has it, and closes a group in any case: wait_group
  // counts groups.
  __device__ __forceinline__ void copy(int tile) {
    if (tile >= storage_.work.keys.begin) {
      const int rows = storage_.work.visible.k_len - tile * Traits::kCtaS;
      if (rows < Traits::kCtaS) {
        copy_last(tile, rows);
      } else if (!kGathered || storage_.work.unit_shift > 0) {
        copy_evenly(tile);
      } else {
        copy_row_by_row(tile);
      }
      if constexpr (Traits::Kv::kHasPairs) {
        copy_pairs(tile);
      }
    }
    copy_async_commit();
  }

  __device__ __forceinline__ void look_up(int tile) {
    if constexpr (kGathered) {
      entry_ = {};  // kept until the next look_up only
      if (finds_address_at(tile)) {
        entry_ = storage_.work.cache.entry(key_of(tile));
      }
    }
  }

  __device__ __forceinline__ void publish(int tile) {
    if constexpr (kGathered) {
      if (finds_address_at(tile)) {
        const int key = key_of(tile);
        storage_.address_of(key >> storage_.work.unit_shift) =
            storage_.work.cache.row(params_, key, entry_);
      }
    }
  }

 private:
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kCtaS = Traits::kCtaS;
  static constexpr int kKeyChunks = Traits::Kv::template kRowBytes<Traits::kHeadDim> / 16;
  static constexpr int kValueChunks = Traits::Kv::template kRowBytes<Traits::kHeadDimV> / 16;
  static constexpr RowOrder kOrder = kGathered ? RowOrder::kConsecutive : RowOrder::kStrided;

  __device__ __forceinline__ static int slot_of(int tile) {
    return static_cast<unsigned>(tile) % Traits::kSlots;
  }

  __device__ __forceinline__ void copy_evenly(int tile) {
    const RowStride stride = storage_.work.cache.stride(params_);
    copy_rows_evenly<kThreads, kCtaS, kKeyChunks, kOrder>(
        key_target(tile), stride.k, [&](int row) { return unit_address(tile, row).k; });
    copy_rows_evenly<kThreads, kCtaS, kValueChunks, kOrder>(
        value_target(tile), stride.v, [&](int row) { return unit_address(tile, row).v; });
  }

  __device__ __forceinline__ void copy_row_by_row(int tile) {
    copy_rows<kThreads, kCtaS, kKeyChunks>(key_target(tile),
                                           [&](int row) { return unit_address(tile, row).k; });
    copy_rows<kThreads, kCtaS, kValueChunks>(value_target(tile),
                                             [&](int row) { return unit_address(tile, row).v; });
  }

  // The last tile of a sequence, which may have fewer rows.
  __device__ __forceinline__ void copy_last(int tile, int rows) {
    copy_some_rows<kThreads, kCtaS, kKeyChunks>(
        key_target(tile), rows, [&](int row) { return row_address(tile, row).k; });
    copy_some_rows<kThreads, kCtaS, kValueChunks>(
        value_target(tile), rows, [&](int row) { return row_address(tile, row).v; });
  }

  // Where rows as they lie in the cache go.
  __device__ __forceinline__ auto& key_target(int tile) {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.key_codes;
    } else {
      return storage_.key[slot_of(tile)];
    }
  }

  __device__ __forceinline__ auto& value_target(int tile) {
    if constexpr (Traits::Kv::kIsQuantised) {
      return storage_.value_codes;
    } else {
      return storage_.value[slot_of(tile)];
    }
  }

  // Each thread that has looked up a row copies its pairs. Rows without a key get zeros.
  __device__ __forceinline__ void copy_pairs(int tile) {
    const int row = static_cast<int>(threadIdx.x);
    if (row < kCtaS) {
      const bool exists = finds_address_at(tile);
      const RowAddress pair = exists ? storage_.pair_rows.pair(params_, key_of(tile), entry_)
                                     : RowAddress{nullptr, nullptr};
      copy_async_4_or_zero(shared_address(&storage_.key_pairs[row]), pair.k, exists);
      copy_async_4_or_zero(shared_address(&storage_.value_pairs[row]), pair.v, exists);
    }
  }

  // Of the first row of the unit that holds a row. A unit without a key keeps an old address: its
  // rows become zero unread.
  __device__ __forceinline__ RowAddress unit_address(int tile, int row) const {
    const int key = tile * kCtaS + row;
    if constexpr (kGathered) {
      return storage_.address_of(key >> storage_.work.unit_shift);
    } else {
      return storage_.work.cache.row(params_, key);
    }
  }

  __device__ __forceinline__ RowAddress row_address(int tile, int row) const {
    RowAddress address = unit_address(tile, row);
    if constexpr (kGathered) {
      const RowStride stride = storage_.work.cache.stride(params_);
      const int within = row & ((1 << storage_.work.unit_shift) - 1);
      address.k += within * stride.k;
      address.v += within * stride.v;
    }
    return address;
  }

  // The key whose address this thread finds when `tile` is the next to be copied.
  __device__ __forceinline__ int key_of(int tile) const {
    const int shift = storage_.work.unit_shift;
    return ((tile >> shift) * kCtaS + static_cast<int>(threadIdx.x)) << shift;
  }

  // Addresses are found ahead of the first tile, and of those that are the first of their group.
  __device__ __forceinline__ bool finds_address_at(int tile) const {
    const int last_of_group = (1 << storage_.work.unit_shift) - 1;
    const bool is_first =
        tile == storage_.work.keys.end - 1 || (tile & last_of_group) == last_of_group;
    return is_first && static_cast<int>(threadIdx.x) < kCtaS && tile >= storage_.work.keys.begin &&
           key_of(tile) < storage_.work.visible.k_len;
  }

  Storage& storage_;
  const AttentionParams<typename Config::T>& params_;
  typename Traits::Cache::Entry entry_{};
};

}  // namespace attn::sm80
