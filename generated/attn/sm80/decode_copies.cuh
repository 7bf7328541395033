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

// Copies the pieces of one warp: of each unit 16 tokens of K and of V. A lane has a token of its
// own, which it shares where a piece is one unit, and copies rows of that token's unit. The block
// table is read one piece ahead (look_up), so that its latency passes behind the arithmetic.
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
  static constexpr int kUnitLanes = 32 / kUnits;
  // A unit: pairs, keys, values.
  static constexpr int kUnitBytes = sizeof(Unit<Config>);
  static constexpr int kKeyPlace = kUnitBytes - 2 * sizeof(Tile);
  static constexpr int kRowChunks = Tile::kChunks;
  static constexpr int kPanel = kRowChunks < 8 ? kRowChunks : 8;
  static constexpr bool kIsStepped = kRowChunks % kPanel == 0 && kUnitLanes % kPanel == 0;

 public:
  __device__ __forceinline__ PieceLoader(const AttentionParams<T>& params,
                                         const CtaWork& work,
                                         const SourceHolder<Config>& holder,
                                         int lane)
      : params_(params),
        work_(work),
        holder_(holder),
        lane_(lane),
        place_(__shfl_sync(kWarp, place_of(lane), lane)) {}

  // The pieces that follow are of this segment.
  __device__ __forceinline__ void enter(const Segment& segment, int kv_head) {
    CopySource<Config> source;
    source.cache = Cache::make(params_, segment.sequence, kv_head);
    source.steps = Cache::Steps::make(params_);
    source.seen = segment.seen;
    source.regular = {0, 0, 0, 0};
    if (source.cache.evenly_spaced(kTokens) && are_near()) {
      if constexpr (Cache::kGathered) {
        source.regular = RegularPieces::make(segment.seen, kPieceTokens, source.cache.splitter);
      } else {
        source.regular = RegularPieces::make(segment.seen, kPieceTokens);
      }
    }
    if constexpr (Traits::Kv::kHasPairs) {
      source.pairs = Pairs::make(params_, segment.sequence, kv_head);
      source.pair_steps = Pairs::Steps::make(params_);
    }
    holder_.set(source, lane_);
  }

  // Finds the block of each token of the piece that begins at a token. Entries of tokens that no
  // row sees are not read: they may be wild.
  __device__ __forceinline__ void look_up(int first) {
    const RegularPieces regular = holder_.source.regular;
    is_regular_ = regular.has(first);
    if constexpr (Cache::kGathered) {
      const int token = own_token(first);
      if (is_regular_) {
        entry_ = holder_.source.cache.entry_of_block(regular.block(token));
      } else {
        entry_ = is_seen(token) ? holder_.source.cache.entry(token) : Entry{};
      }
    }
  }

  // Starts the copies of the piece that was looked up. Units that no row sees are left out.
  __device__ __forceinline__ void copy(Piece<Config>& to, int first) {
    const uint32_t piece = lane_address(to);
    if (is_regular_) {
      copy_regular(piece, first);
      return;
    }
    const int token = own_token(first);
    const bool seen = is_seen(token);
    const RowAddress row = seen ? address(token) : RowAddress{nullptr, nullptr};
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int begin = first + unit * kTokens;
      if (begin < holder_.source.seen.end && begin + kTokens > holder_.source.seen.begin) {
        copy_rows(piece + unit * kUnitBytes, row, unit * kTokens);
      }
    }
    if constexpr (Traits::Kv::kHasPairs) {
      copy_pairs(
          piece,
          seen ? holder_.source.pairs.pair(params_, token, entry_) : RowAddress{nullptr, nullptr},
          seen);
    }
  }

 private:
  // Copies to an address that is in part in a uniform register may get their descriptor from an odd
  // one (ptxas 13.0): an illegal instruction, which tests/nvcc/test_gates.py looks for. This is the
  // same address in a register of the lane, for a place is even, which ptxas does not know.
  __device__ __forceinline__ uint32_t lane_address(const Piece<Config>& piece) const {
    return shared_address(&piece) | (place_ & 1);
  }

  __device__ __forceinline__ int own_token(int first) const { return first + lane_ % kPieceTokens; }

  __device__ __forceinline__ bool is_seen(int token) const {
    return token >= holder_.source.seen.begin && token < holder_.source.seen.end;
  }

  __device__ __forceinline__ bool are_near() const {
    return Cache::is_near(params_) && Pairs::is_near(params_);
  }

  __device__ __forceinline__ RowAddress address(int token) const {
    if constexpr (Cache::kGathered) {
      return holder_.source.cache.row(params_, token, entry_);
    } else {
      return holder_.source.cache.row(params_, token);
    }
  }

  // --- regular pieces ---

  __device__ __forceinline__ void copy_regular(uint32_t piece, int first) {
    const int token = own_token(first);
    const unsigned row = Cache::kGathered ? holder_.source.regular.row(token) : token;
    // All is read before the first copy, since nothing may move across that.
    const auto steps = holder_.source.steps;
    const unsigned first_row = row - lane_ % kTokens + (kIsStepped ? own_row(lane_) : 0);
    const RowAddress from = holder_.source.cache.near_row(steps, first_row, entry_);
    const bool is_streamed = work_.streamed;
    if constexpr (Traits::Kv::kHasPairs) {
      const auto pair_steps = holder_.source.pair_steps;
      copy_pairs(piece, holder_.source.pairs.near_pair(pair_steps, row, entry_), true);
    }
    // A plain copy where L2 may keep the line: a policy of evict_normal is slower than none
    // (measured: 10 %).
    if (is_streamed) {
      const uint64_t policy = evict_first_policy();
      copy_units(piece, from, steps.row, [&](uint32_t to, const char* chunk) {
        copy_async_16_hinted(to, chunk, policy);
      });
    } else if constexpr (kRowChunks >= 8) {
      copy_units(piece, from, steps.row, copy_async_16);
    } else {
      copy_units(piece, from, steps.row, copy_async_16_of_64);
    }
  }

  // Row of its unit that a lane begins at, where it steps down.
  __device__ __forceinline__ static int own_row(int lane) { return lane % kUnitLanes / kPanel; }

  // Every lane copies rows of its own unit, the first of which is at `from`.
  template <class Copy>
  __device__ __forceinline__ void copy_units(uint32_t piece,
                                             RowAddress from,
                                             RowSteps steps,
                                             Copy copy) {
    if constexpr (kIsStepped) {
      copy_stepped(piece + place_, from, steps, copy);
    } else {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const uint32_t key = piece + unit * kUnitBytes + kKeyPlace;
        copy_tile(key, shuffled(from.k, unit * kTokens), steps.k, copy);
        copy_tile(key + sizeof(Tile), shuffled(from.v, unit * kTokens), steps.v, copy);
      }
    }
  }

  // Where rows are whole panels of 8 chunks, or whole rows are a step of the unit's lanes, a lane
  // stays in its column of each panel and only steps down, from its own row on. V lies behind K.
  template <class Copy>
  __device__ __forceinline__ void copy_stepped(uint32_t key,
                                               RowAddress from,
                                               RowSteps steps,
                                               Copy copy) {
    constexpr int kRowsOfStep = kUnitLanes / kPanel;
    from.k += lane_ % kPanel * 16;
    from.v += lane_ % kPanel * 16;
#pragma unroll
    for (int row = 0; row < kTokens; row += kRowsOfStep) {
      const uint32_t to = Tile::below(key, row);
#pragma unroll
      for (int panel = 0; panel < kRowChunks; panel += kPanel) {
        copy(to + panel * 16, from.k + panel * 16);
        copy(to + sizeof(Tile) + panel * 16, from.v + panel * 16);
      }
      from.k += static_cast<uint64_t>(steps.k) * kRowsOfStep;
      from.v += static_cast<uint64_t>(steps.v) * kRowsOfStep;
    }
  }

  // Bytes from a piece to the first chunk of K that a lane copies.
  __device__ __forceinline__ static uint32_t place_of(int lane) {
    return lane / kUnitLanes * kUnitBytes + kKeyPlace +
           Tile::chunk_offset(own_row(lane), lane % kPanel);
  }

  template <class Copy>
  __device__ __forceinline__ void copy_tile(uint32_t tile,
                                            const char* from,
                                            uint32_t stride,
                                            Copy copy) {
#pragma unroll
    for (int i = 0; i < kTokens * kRowChunks; i += 32) {
      const int row = (i + lane_) / kRowChunks;
      const int chunk = (i + lane_) % kRowChunks;
      copy(tile + Tile::chunk_offset(row, chunk),
           from + static_cast<uint64_t>(stride) * row + chunk * 16);
    }
  }

  // --- other pieces ---

  // Row by row: lane `base` + r knows the address of row r. Rows that nobody sees become zero, so
  // that what lies there in memory, NaN included, never meets the tensor cores.
  __device__ __forceinline__ void copy_rows(uint32_t unit, const RowAddress& own, int base) {
    const uint32_t key = unit + kKeyPlace;
    const uint32_t value = key + sizeof(Tile);
    // Shuffles of several rows are under way together, where registers allow.
    constexpr int kRowsAtOnce = Traits::kHasSpareRegisters ? 4 : 1;
#pragma unroll kRowsAtOnce
    for (int i = 0; i < kTokens * kRowChunks; i += 32) {
      const int row = (i + lane_) / kRowChunks;
      const int chunk = (i + lane_) % kRowChunks;
      const char* const k = shuffled(own.k, base + row);
      const char* const v = shuffled(own.v, base + row);
      copy_async_16_or_zero(key + Tile::chunk_offset(row, chunk), k + chunk * 16, k != nullptr);
      copy_async_16_or_zero(value + Tile::chunk_offset(row, chunk), v + chunk * 16, v != nullptr);
    }
  }

  // --- pairs ---

  // Each lane the pairs of K and V of a token, or one of them where a piece has 16 tokens. Pairs of
  // tokens that nobody sees become zero.
  __device__ __forceinline__ void copy_pairs(uint32_t piece, RowAddress pair, bool seen) {
    const int own = lane_ % kPieceTokens;
    const uint32_t both = piece + own / kTokens * kUnitBytes + own % kTokens * sizeof(uint2);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const bool is_key = kUnits == 1 ? lane_ < kTokens : i == 0;
      copy_async_4_or_zero(both + (is_key ? 0 : 4), is_key ? pair.k : pair.v, seen);
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
  uint32_t place_;           // place_of(lane), by way of a shuffle: nothing is known of it
  bool is_regular_ = false;  // the piece that was looked up: all rows are seen, and evenly spaced
  Entry entry_;              // of this lane's token
};

}  // namespace attn::sm80
