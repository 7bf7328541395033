// SPDX-License-Identifier: Apache-2.0
// The copies of rows of Q, K and V from global memory into shared tiles.
#pragma once

#include "attn/sm80/prefill_traits.cuh"

namespace attn::sm80 {

// Starts the copies of a tile's rows, 16 bytes each. `source(row)` is the address of a row; rows
// from `rows` on become zero, so that what lies there in memory, NaN included, never meets the
// tensor cores.
template <int kThreads, int kRows, int kChunks, class Tile, class Source>
__device__ __forceinline__ void copy_rows(Tile& tile, int rows, Source source) {
  constexpr int kCopies = kRows * kChunks;
  const uint32_t base = shared_address(&tile);
  // Opaque: dozens of row addresses would otherwise live across the loop over keys.
  const int thread = opaque(threadIdx.x);
#pragma unroll
  for (int first = 0; first < kCopies; first += kThreads) {
    const int copy = first + thread;
    if (kCopies % kThreads == 0 || copy < kCopies) {
      const int row = copy / kChunks;
      const int chunk = copy % kChunks;
      copy_async_16_or_zero(
          base + Tile::chunk_offset(row, chunk), source(row) + chunk * 16, row < rows);
    }
  }
}

// The same for rows that are all there and lie `stride` bytes apart. Where the threads take whole
// rows at a time, a thread stays in its column and only steps down.
template <int kThreads, int kRows, int kChunks, class Tile>
__device__ __forceinline__ void copy_rows_evenly(Tile& tile,
                                                 const char* first_row,
                                                 int64_t stride) {
  constexpr int kCopies = kRows * kChunks;
  if constexpr (kThreads % kChunks == 0 && kCopies % kThreads == 0) {
    constexpr int kStep = kThreads / kChunks;
    const int thread = opaque(threadIdx.x);
    const int row = thread / kChunks;
    const int chunk = thread % kChunks;
    const uint32_t base = shared_address(&tile);
    const char* from = first_row + row * stride + chunk * 16;
#pragma unroll
    for (int step = 0; step < kRows; step += kStep) {
      copy_async_16(base + Tile::chunk_offset(row + step, chunk), from);
      from += kStep * stride;
    }
  } else {
    copy_rows<kThreads, kRows, kChunks>(
        tile, kRows, [&](int row) { return first_row + row * stride; });
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
  copy_rows<Traits::kThreads, Traits::kCtaQ, Traits::kHeadDim / 8>(query, tile.rows, [&](int row) {
    return reinterpret_cast<const char*>(first + row * params.stride);
  });
}

// Moves tiles of K and V of one sequence and head into a ring of kStages slots, tile t to slot
// t % kStages. Gathered caches take two steps more: each thread finds the address of one row
// (look_up) and shows it to the others (publish); the two are apart so that the block table is read
// behind the arithmetic of a tile. A published tile may be copied after the next barrier.
template <class Config>
class TileStream {
  using Traits = PrefillTraits<Config>;
  using Storage = PrefillStorage<Config>;

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
      if (rows >= Traits::kCtaS && storage_.work.cache.evenly_spaced(Traits::kCtaS)) {
        copy_evenly(tile);
      } else {
        copy_row_by_row(tile, rows);
      }
      if constexpr (Traits::Kv::kHasPairs) {
        copy_pairs(tile);
      }
    }
    copy_async_commit();
  }

  __device__ __forceinline__ void look_up(int tile) {
    if constexpr (Traits::Cache::kGathered) {
      if (owns_key_of(tile)) {
        entry_ = storage_.work.cache.entry(key_of(tile));
      }
    }
  }

  __device__ __forceinline__ void publish(int tile) {
    if constexpr (Traits::Cache::kGathered) {
      if (owns_key_of(tile)) {
        storage_.rows[static_cast<unsigned>(tile) % 2][threadIdx.x] =
            storage_.work.cache.row(params_, key_of(tile), entry_);
      }
    }
  }

 private:
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kCtaS = Traits::kCtaS;
  static constexpr int kKeyChunks = Traits::Kv::template kRowBytes<Traits::kHeadDim> / 16;
  static constexpr int kValueChunks = Traits::Kv::template kRowBytes<Traits::kHeadDimV> / 16;

  __device__ __forceinline__ static int slot_of(int tile) {
    return static_cast<unsigned>(tile) % Traits::kSlots;
  }

  __device__ __forceinline__ void copy_evenly(int tile) {
    const RowAddress first = row_address(tile, 0);
    const RowStride stride = storage_.work.cache.stride(params_);
    copy_rows_evenly<kThreads, kCtaS, kKeyChunks>(key_target(tile), first.k, stride.k);
    copy_rows_evenly<kThreads, kCtaS, kValueChunks>(value_target(tile), first.v, stride.v);
  }

  __device__ __forceinline__ void copy_row_by_row(int tile, int rows) {
    copy_rows<kThreads, kCtaS, kKeyChunks>(
        key_target(tile), rows, [&](int row) { return row_address(tile, row).k; });
    copy_rows<kThreads, kCtaS, kValueChunks>(
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
      const bool exists = owns_key_of(tile);
      const RowAddress pair = exists ? storage_.pair_rows.pair(params_, key_of(tile), entry_)
                                     : RowAddress{nullptr, nullptr};
      copy_async_4_or_zero(shared_address(&storage_.key_pairs[row]), pair.k, exists);
      copy_async_4_or_zero(shared_address(&storage_.value_pairs[row]), pair.v, exists);
    }
  }

  __device__ __forceinline__ RowAddress row_address(int tile, int row) const {
    if constexpr (Traits::Cache::kGathered) {
      return storage_.table(tile)[row];
    } else {
      return storage_.work.cache.row(params_, tile * kCtaS + row);
    }
  }

  // The key that this thread looks up. Rows without a key keep an old address: they become zero
  // unread.
  __device__ __forceinline__ static int key_of(int tile) {
    return tile * Traits::kCtaS + static_cast<int>(threadIdx.x);
  }

  __device__ __forceinline__ bool owns_key_of(int tile) const {
    return static_cast<int>(threadIdx.x) < Traits::kCtaS && tile >= storage_.work.keys.begin &&
           key_of(tile) < storage_.work.visible.k_len;
  }

  Storage& storage_;
  const AttentionParams<typename Config::T>& params_;
  typename Traits::Cache::Entry entry_{};
};

}  // namespace attn::sm80
