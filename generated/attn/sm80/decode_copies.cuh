// SPDX-License-Identifier: Apache-2.0
// Pieces of K and V on their way from the cache into a warp's ring.
#pragma once

#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/decode_traits.cuh"

namespace attn::sm80 {

// Copies the pieces of one warp, unit by unit: 16 tokens of K and of V. The block table is read one
// piece ahead (look_up), so that its latency passes behind the arithmetic.
template <class Config>
class PieceLoader {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;
  using Cache = typename Traits::Cache;
  using Entry = typename Cache::Entry;
  using Pairs = typename Traits::Pairs;
  using Tile = typename Traits::PieceTile;
  static constexpr int kTokens = Traits::kUnitTokens;
  static constexpr int kUnits = Traits::kUnits;
  static constexpr int kRowChunks = Tile::kChunks;

 public:
  __device__ __forceinline__ PieceLoader(const AttentionParams<T>& params,
                                         const CtaWork& work,
                                         CopySource<Config>& source,
                                         int lane)
      : params_(params), work_(work), source_(source), lane_(lane) {}

  // The pieces that follow are of this segment.
  __device__ __forceinline__ void enter(const Segment& segment) {
    if (lane_ == 0) {
      source_.cache = Cache::make(params_, segment.sequence, work_.tile.kv_head);
      source_.seen = segment.seen;
      if constexpr (Traits::Kv::kHasPairs) {
        source_.pairs = Pairs::make(params_, segment.sequence, work_.tile.kv_head);
      }
    }
    __syncwarp();  // the source is visible to the warp
  }

  // Finds the block of each unit of the piece that begins at a token; of each row its own where
  // they need not lie in one block. Entries of tokens that no row sees are not read: they may be
  // wild.
  __device__ __forceinline__ void look_up(int piece_first) {
    if constexpr (Cache::kGathered) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const int first = piece_first + unit * kTokens;
        const int token = is_regular(first) ? first : first + lane_ % kTokens;
        entries_[unit] = is_seen(token) ? source_.cache.entry(token) : Entry{};
      }
    }
  }

  // Starts the copies of the piece that was looked up. Units that no row sees are left out.
  __device__ __forceinline__ void copy(Piece<Config>& piece, int piece_first) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int first = piece_first + unit * kTokens;
      if (is_regular(first)) {
        copy_regular(piece.units[unit], first, entries_[unit]);
      } else if (first < source_.seen.end && first + kTokens > source_.seen.begin) {
        copy_rows(piece.units[unit], first, entries_[unit]);
      }
      if constexpr (Traits::Kv::kHasPairs) {
        copy_pairs(piece.units[unit], first, entries_[unit]);
      }
    }
  }

 private:
  // All rows are seen, and lie evenly spaced.
  __device__ __forceinline__ bool is_regular(int first) const {
    return first >= source_.seen.begin && first + kTokens <= source_.seen.end &&
           source_.cache.evenly_spaced(kTokens);
  }

  __device__ __forceinline__ bool is_seen(int token) const {
    return token >= source_.seen.begin && token < source_.seen.end;
  }

  __device__ __forceinline__ RowAddress address(int token, Entry entry) const {
    if constexpr (Cache::kGathered) {
      return source_.cache.row(params_, token, entry);
    } else {
      return source_.cache.row(params_, token);
    }
  }

  __device__ __forceinline__ void copy_regular(Unit<Config>& unit, int first, Entry entry) {
    const RowAddress row = address(first, entry);
    const RowStride stride = source_.cache.stride(params_);
    // A plain copy where L2 may keep the line: a policy of evict_normal is slower than none
    // (measured: 10 %).
    if (work_.streamed) {
      const uint64_t policy = evict_first_policy();
      copy_tile(unit.key, row.k, stride.k, [&](uint32_t to, const char* from) {
        copy_async_16_hinted(to, from, policy);
      });
      copy_tile(unit.value, row.v, stride.v, [&](uint32_t to, const char* from) {
        copy_async_16_hinted(to, from, policy);
      });
    } else if constexpr (kRowChunks >= 8) {
      copy_tile(unit.key, row.k, stride.k, copy_async_16);
      copy_tile(unit.value, row.v, stride.v, copy_async_16);
    } else {
      copy_tile(unit.key, row.k, stride.k, copy_async_16_of_64);
      copy_tile(unit.value, row.v, stride.v, copy_async_16_of_64);
    }
  }

  // Where rows are whole panels of 8 chunks, or whole rows are a step of the warp, a lane stays in
  // its column of each panel and only steps down.
  template <class Copy>
  __device__ __forceinline__ void copy_tile(Tile& tile,
                                            const char* first,
                                            int64_t stride,
                                            Copy copy) {
    const uint32_t base = shared_address(&tile);
    constexpr int kPanel = kRowChunks < 8 ? kRowChunks : 8;
    if constexpr (kRowChunks % kPanel == 0 && 32 % kPanel == 0) {
      constexpr int kRowsOfStep = 32 / kPanel;
      const int row = lane_ / kPanel;
      const int chunk = lane_ % kPanel;
      const char* from = first + row * stride + chunk * 16;
#pragma unroll
      for (int step = 0; step < kTokens; step += kRowsOfStep) {
#pragma unroll
        for (int panel = 0; panel < kRowChunks; panel += kPanel) {
          copy(base + Tile::chunk_offset(row + step, panel + chunk), from + panel * 16);
        }
        from += kRowsOfStep * stride;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTokens * kRowChunks; i += 32) {
        const int row = (i + lane_) / kRowChunks;
        const int chunk = (i + lane_) % kRowChunks;
        copy(base + Tile::chunk_offset(row, chunk), first + row * stride + chunk * 16);
      }
    }
  }

  // Row by row: lane r (and r + 16) knows the address of row r. Rows that nobody sees become zero,
  // so that what lies there in memory, NaN included, never meets the tensor cores.
  __device__ __forceinline__ void copy_rows(Unit<Config>& unit, int first, Entry entry) {
    const int token = first + lane_ % kTokens;
    const RowAddress own = is_seen(token) ? address(token, entry) : RowAddress{nullptr, nullptr};
    const uint32_t key = shared_address(&unit.key);
    const uint32_t value = shared_address(&unit.value);
#pragma unroll 1
    for (int i = 0; i < kTokens * kRowChunks; i += 32) {
      const int row = (i + lane_) / kRowChunks;
      const int chunk = (i + lane_) % kRowChunks;
      const char* const k = shuffled(own.k, row);
      const char* const v = shuffled(own.v, row);
      copy_async_16_or_zero(key + Tile::chunk_offset(row, chunk), k + chunk * 16, k != nullptr);
      copy_async_16_or_zero(value + Tile::chunk_offset(row, chunk), v + chunk * 16, v != nullptr);
    }
  }

  // Lanes 0 to 15 the pairs of K, the others those of V. Pairs of tokens that nobody sees become
  // zero.
  __device__ __forceinline__ void copy_pairs(Unit<Config>& unit, int first, Entry entry) {
    const int own = lane_ % kTokens;
    const bool seen = is_seen(first + own);
    const RowAddress pair =
        seen ? source_.pairs.pair(params_, first + own, entry) : RowAddress{nullptr, nullptr};
    const bool is_key = lane_ < kTokens;
    copy_async_4_or_zero(shared_address(is_key ? &unit.key_pairs[own] : &unit.value_pairs[own]),
                         is_key ? pair.k : pair.v,
                         seen);
  }

  __device__ __forceinline__ static const char* shuffled(const char* pointer, int lane) {
    return reinterpret_cast<const char*>(
        __shfl_sync(kWarp, reinterpret_cast<unsigned long long>(pointer), lane));
  }

  const AttentionParams<T>& params_;
  const CtaWork& work_;
  CopySource<Config>& source_;
  int lane_;
  Entry entries_[kUnits];
};

}  // namespace attn::sm80
