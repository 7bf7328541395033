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
  static constexpr int kPieceTokens = kUnits * kTokens;
  static constexpr int kRowChunks = Tile::kChunks;
  static constexpr int kPanel = kRowChunks < 8 ? kRowChunks : 8;
  static constexpr bool kIsStepped = kRowChunks % kPanel == 0 && 32 % kPanel == 0;

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
      if constexpr (!Cache::kGathered) {
        source_.regular = RegularPieces::make(segment.seen, kPieceTokens);
      } else if (source_.cache.evenly_spaced(kTokens)) {
        source_.regular = RegularPieces::make(segment.seen, kPieceTokens, source_.cache.splitter);
      } else {
        source_.regular = {0, 0, 0, 0};
      }
      if constexpr (Traits::Kv::kHasPairs) {
        source_.pairs = Pairs::make(params_, segment.sequence, work_.tile.kv_head);
      }
    }
    __syncwarp();  // the source is visible to the warp
  }

  // Finds the block of each unit of the piece that begins at a token; of each row its own where
  // they need not lie in one block. Entries of tokens that no row sees are not read: they may be
  // wild.
  __device__ __forceinline__ void look_up(int first) {
    if constexpr (Cache::kGathered) {
      const RegularPieces regular = source_.regular;
      if (regular.has(first)) {
        const int block = regular.block(first);
        const bool is_last = regular.ends_block(first - block * regular.block_len, kTokens);
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          entries_[unit] = source_.cache.entry_of_block(block + (unit > 0 && is_last ? 1 : 0));
        }
      } else {
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          const int token = first + unit * kTokens + lane_ % kTokens;
          entries_[unit] = is_seen(token) ? source_.cache.entry(token) : Entry{};
        }
      }
    }
  }

  // Starts the copies of the piece that was looked up. Units that no row sees are left out.
  __device__ __forceinline__ void copy(Piece<Config>& piece, int first) {
    if (source_.regular.has(first)) {
      copy_regular(piece, first);
      return;
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int begin = first + unit * kTokens;
      if (begin < source_.seen.end && begin + kTokens > source_.seen.begin) {
        copy_rows(piece.units[unit], begin, entries_[unit]);
      }
    }
    if constexpr (Traits::Kv::kHasPairs) {
      const int token = first + lane_ % kPieceTokens;
      const bool seen = is_seen(token);
      copy_pairs(
          piece,
          seen ? source_.pairs.pair(params_, token, own_entry()) : RowAddress{nullptr, nullptr},
          seen);
    }
  }

 private:
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

  // --- regular pieces ---

  // The row of its block, or of the sequence, that each unit begins at.
  struct UnitRows {
    int first[kUnits];
  };

  __device__ __forceinline__ UnitRows rows_of(int first) const {
    UnitRows rows;
    rows.first[0] = Cache::kGathered ? source_.regular.row(first) : first;
#pragma unroll
    for (int unit = 1; unit < kUnits; ++unit) {
      const int row = rows.first[unit - 1];
      const bool is_last = Cache::kGathered && source_.regular.ends_block(row, kTokens);
      rows.first[unit] = is_last ? 0 : row + kTokens;
    }
    return rows;
  }

  __device__ __forceinline__ void copy_regular(Piece<Config>& piece, int first) {
    const UnitRows rows = rows_of(first);
    // A plain copy where L2 may keep the line: a policy of evict_normal is slower than none
    // (measured: 10 %).
    if (work_.streamed) {
      const uint64_t policy = evict_first_policy();
      copy_units(piece, rows, [&](uint32_t to, const char* from) {
        copy_async_16_hinted(to, from, policy);
      });
    } else if constexpr (kRowChunks >= 8) {
      copy_units(piece, rows, copy_async_16);
    } else {
      copy_units(piece, rows, copy_async_16_of_64);
    }
    if constexpr (Traits::Kv::kHasPairs) {
      const int unit = kUnits == 1 ? 0 : lane_ / kTokens;
      const int row = (unit == 0 ? rows.first[0] : rows.first[kUnits - 1]) + lane_ % kTokens;
      if constexpr (Cache::kGathered) {
        copy_pairs(piece, source_.pairs.pair_of_block(params_, row, own_entry()), true);
      } else {
        copy_pairs(piece, source_.pairs.pair(params_, row, Entry{}), true);
      }
    }
  }

  template <class Copy>
  __device__ __forceinline__ void copy_units(Piece<Config>& piece,
                                             const UnitRows& rows,
                                             Copy copy) {
    const RowStride stride = source_.cache.stride(params_);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int own = rows.first[unit] + (kIsStepped ? lane_ / kPanel : 0);
      RowAddress row;
      if constexpr (Cache::kGathered) {
        row = source_.cache.row_of_block(params_, own, entries_[unit]);
      } else {
        row = source_.cache.row(params_, own);
      }
      copy_tile(piece.units[unit].key, row.k, stride.k, copy);
      copy_tile(piece.units[unit].value, row.v, stride.v, copy);
    }
  }

  // Where rows are whole panels of 8 chunks, or whole rows are a step of the warp, a lane stays in
  // its column of each panel and only steps down, from its own row on. Otherwise `from` is the
  // first row.
  template <class Copy>
  __device__ __forceinline__ void copy_tile(Tile& tile,
                                            const char* from,
                                            int64_t stride,
                                            Copy copy) {
    const uint32_t base = shared_address(&tile);
    if constexpr (kIsStepped) {
      constexpr int kRowsOfStep = 32 / kPanel;
      const int row = lane_ / kPanel;
      const int chunk = lane_ % kPanel;
      from += chunk * 16;
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
        copy(base + Tile::chunk_offset(row, chunk), from + row * stride + chunk * 16);
      }
    }
  }

  // --- other pieces ---

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

  // --- pairs ---

  // The block of the token whose pairs this lane copies.
  __device__ __forceinline__ Entry own_entry() const {
    return lane_ % kPieceTokens < kTokens ? entries_[0] : entries_[kUnits - 1];
  }

  // Each lane the pairs of K and V of a token, or one of them where a piece has 16 tokens. Pairs of
  // tokens that nobody sees become zero.
  __device__ __forceinline__ void copy_pairs(Piece<Config>& piece, RowAddress pair, bool seen) {
    const int own = lane_ % kPieceTokens;
    Unit<Config>& unit = piece.units[own / kTokens];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const bool is_key = kUnits == 1 ? lane_ < kTokens : i == 0;
      uint32_t* const pairs = is_key ? unit.key_pairs : unit.value_pairs;
      copy_async_4_or_zero(shared_address(pairs + own % kTokens), is_key ? pair.k : pair.v, seen);
    }
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
