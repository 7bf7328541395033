// SPDX-License-Identifier: Apache-2.0
// Pieces of K and V on their way from the cache into a warp's ring.
#pragma once

#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/decode_traits.cuh"

namespace attn::sm80 {

// Where a warp keeps what it copies from: registers, where tiles leave them free, or shared memory.
template <class Config, bool kInRegisters = DecodeTraits<Config>::kHasSpareRegisters>
struct SourceHolder {
  CopySource<Config>& source;

  __device__ __forceinline__ SourceHolder(DecodeStorage<Config>& storage, int warp)
      : source(storage.sources[warp]) {}

  __device__ __forceinline__ void set(const CopySource<Config>& value, int lane) {
    __syncwarp();  // all lanes have read the one before
    if (lane == 0) {
      source = value;
    }
    __syncwarp();  // the source is visible to the warp
  }
};

template <class Config>
struct SourceHolder<Config, true> {
  CopySource<Config> source{};

  __device__ __forceinline__ SourceHolder(DecodeStorage<Config>&, int) {}
  __device__ __forceinline__ void set(const CopySource<Config>& value, int) { source = value; }
};

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
                                         const SourceHolder<Config>& holder,
                                         int lane)
      : params_(params), work_(work), holder_(holder), lane_(lane) {}

  // The pieces that follow are of this segment.
  __device__ __forceinline__ void enter(const Segment& segment, int kv_head) {
    CopySource<Config> source;
    source.cache = Cache::make(params_, segment.sequence, kv_head);
    source.seen = segment.seen;
    if constexpr (!Cache::kGathered) {
      source.regular = RegularPieces::make(segment.seen, kPieceTokens);
    } else if (source.cache.evenly_spaced(kTokens)) {
      source.regular = RegularPieces::make(segment.seen, kPieceTokens, source.cache.splitter);
    } else {
      source.regular = {0, 0, 0, 0};
    }
    if constexpr (Traits::Kv::kHasPairs) {
      source.pairs = Pairs::make(params_, segment.sequence, kv_head);
    }
    holder_.set(source, lane_);
  }

  // Finds the block of each unit of the piece that begins at a token; of each row its own where
  // they need not lie in one block. Entries of tokens that no row sees are not read: they may be
  // wild.
  __device__ __forceinline__ void look_up(int first) {
    const RegularPieces regular = holder_.source.regular;
    is_regular_ = regular.has(first);
    if constexpr (Cache::kGathered) {
      if (is_regular_) {
        const int block = regular.block(first);
        entries_[0] = holder_.source.cache.entry_of_block(block);
        if (kUnits > 1 && regular.ends_block(first - block * regular.block_len, kTokens)) {
          entries_[kUnits - 1] = holder_.source.cache.entry_of_block(block + 1);
        }
      } else {
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          const int token = first + unit * kTokens + lane_ % kTokens;
          entries_[unit] = is_seen(token) ? holder_.source.cache.entry(token) : Entry{};
        }
      }
    }
  }

  // Starts the copies of the piece that was looked up. Units that no row sees are left out.
  __device__ __forceinline__ void copy(Piece<Config>& piece, int first) {
    if (is_regular_) {
      copy_regular(piece, first);
      return;
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int begin = first + unit * kTokens;
      if (begin < holder_.source.seen.end && begin + kTokens > holder_.source.seen.begin) {
        copy_rows(piece.units[unit], begin, entries_[unit]);
      }
    }
    if constexpr (Traits::Kv::kHasPairs) {
      const int token = first + lane_ % kPieceTokens;
      const bool seen = is_seen(token);
      copy_pairs(piece,
                 seen ? holder_.source.pairs.pair(params_, token, own_entry())
                      : RowAddress{nullptr, nullptr},
                 seen);
    }
  }

 private:
  __device__ __forceinline__ bool is_seen(int token) const {
    return token >= holder_.source.seen.begin && token < holder_.source.seen.end;
  }

  __device__ __forceinline__ RowAddress address(int token, Entry entry) const {
    if constexpr (Cache::kGathered) {
      return holder_.source.cache.row(params_, token, entry);
    } else {
      return holder_.source.cache.row(params_, token);
    }
  }

  // --- regular pieces ---

  // The row of its block, or of the sequence, that each unit begins at.
  struct UnitRows {
    int first[kUnits];
  };

  __device__ __forceinline__ UnitRows rows_of(int first) const {
    UnitRows rows;
    rows.first[0] = Cache::kGathered ? holder_.source.regular.row(first) : first;
#pragma unroll
    for (int unit = 1; unit < kUnits; ++unit) {
      const int row = rows.first[unit - 1];
      const bool is_last = Cache::kGathered && holder_.source.regular.ends_block(row, kTokens);
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
      const bool is_second = kUnits > 1 && lane_ >= kTokens;
      const int row = (is_second ? rows.first[kUnits - 1] : rows.first[0]) + lane_ % kTokens;
      if constexpr (Cache::kGathered) {
        const bool is_apart = is_second && rows.first[kUnits - 1] == 0;
        const Entry entry = is_apart ? entries_[kUnits - 1] : entries_[0];
        copy_pairs(piece, holder_.source.pairs.pair_of_block(params_, row, entry), true);
      } else {
        copy_pairs(piece, holder_.source.pairs.pair(params_, row, Entry{}), true);
      }
    }
  }

  template <class Copy>
  __device__ __forceinline__ void copy_units(Piece<Config>& piece,
                                             const UnitRows& rows,
                                             Copy copy) {
    const RowStride stride = holder_.source.cache.stride(params_);
    RowAddress row;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int own = rows.first[unit] + (kIsStepped ? lane_ / kPanel : 0);
      // Nearly always the second unit lies behind the first.
      if (unit > 0 && rows.first[unit] != 0) {
        row.k += kTokens * stride.k;
        row.v += kTokens * stride.v;
      } else if constexpr (Cache::kGathered) {
        row = holder_.source.cache.row_of_block(params_, own, entries_[unit]);
      } else {
        row = holder_.source.cache.row(params_, own);
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
      // Rows that are 8 apart, and panels, are swizzled alike: only so many places differ.
      constexpr int kPlaces = (kRowChunks < 8 ? kTokens : 8) / kRowsOfStep;
      constexpr int kPeriod = kPlaces * kRowsOfStep;
      const int row = lane_ / kPanel;
      const int chunk = lane_ % kPanel;
      uint32_t places[kPlaces];
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        places[i] = base + Tile::chunk_offset(row + i * kRowsOfStep, chunk);
      }
      from += chunk * 16;
#pragma unroll
      for (int step = 0; step < kTokens; step += kRowsOfStep) {
        const int place = step % kPeriod / kRowsOfStep;
        const uint32_t to = places[place] + Tile::chunk_offset(step / kPeriod * kPeriod, 0);
#pragma unroll
        for (int panel = 0; panel < kRowChunks; panel += kPanel) {
          copy(to + panel * 16, from + panel * 16);
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
  SourceHolder<Config> holder_;
  int lane_;
  bool is_regular_ = false;  // the piece that was looked up: all rows are seen, and evenly spaced
  Entry entries_[kUnits];    // of regular pieces, the second only where it is of another block
};

}  // namespace attn::sm80
