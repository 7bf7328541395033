// SPDX-License-Identifier: Apache-2.0
// Pieces of K and V on their way from the cache into a warp's ring.
#pragma once

#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/decode_traits.cuh"

namespace attn::sm80 {

// Copies the pieces of one warp: 16 tokens of K and of V. The block table is read one piece ahead
// (look_up), so that its latency passes behind the arithmetic.
template <class Config>
class PieceLoader {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;
  using Cache = typename Traits::Cache;
  using Tile = typename Traits::PieceTile;
  static constexpr int kTokens = Traits::kWarpTokens;
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
      source_ = {Cache::make(params_, segment.sequence, work_.tile.kv_head), segment.seen};
    }
    __syncwarp();  // the source is visible to the warp
  }

  // Finds the block of the piece that begins at a token; of each row its own where they need not
  // lie in one block. Entries of tokens that no row sees are not read: they may be wild.
  __device__ __forceinline__ void look_up(int first) {
    if constexpr (Cache::kGathered) {
      const int token = is_regular(first) ? first : first + lane_ % kTokens;
      entry_ = token >= source_.seen.begin && token < source_.seen.end ? source_.cache.entry(token)
                                                                       : typename Cache::Entry{};
    }
  }

  // Starts the copies of the piece that was looked up. One that no row sees is left out.
  __device__ __forceinline__ void copy(Piece<Config>& piece, int first) {
    if (is_regular(first)) {
      copy_regular(piece, first);
    } else if (first < source_.seen.end && first + kTokens > source_.seen.begin) {
      copy_rows(piece, first);
    }
  }

 private:
  // All rows are seen, and lie evenly spaced.
  __device__ __forceinline__ bool is_regular(int first) const {
    return first >= source_.seen.begin && first + kTokens <= source_.seen.end &&
           source_.cache.evenly_spaced(kTokens);
  }

  __device__ __forceinline__ RowAddress address(int token) const {
    if constexpr (Cache::kGathered) {
      return source_.cache.row(params_, token, entry_);
    } else {
      return source_.cache.row(params_, token);
    }
  }

  __device__ __forceinline__ void copy_regular(Piece<Config>& piece, int first) {
    const RowAddress row = address(first);
    const RowStride stride = source_.cache.stride(params_);
    // A plain copy where L2 may keep the line: a policy of evict_normal is slower than none
    // (measured: 10 %).
    if (work_.streamed) {
      const uint64_t policy = evict_first_policy();
      copy_tile(piece.key, row.k, stride.k, [&](uint32_t to, const char* from) {
        copy_async_16_hinted(to, from, policy);
      });
      copy_tile(piece.value, row.v, stride.v, [&](uint32_t to, const char* from) {
        copy_async_16_hinted(to, from, policy);
      });
    } else {
      copy_tile(piece.key, row.k, stride.k, copy_async_16);
      copy_tile(piece.value, row.v, stride.v, copy_async_16);
    }
  }

  // Where rows are whole panels of 64 columns, a lane stays in its column of each panel and only
  // steps down.
  template <class Copy>
  __device__ __forceinline__ void copy_tile(Tile& tile,
                                            const char* first,
                                            int64_t stride,
                                            Copy copy) {
    const uint32_t base = shared_address(&tile);
    if constexpr (kRowChunks % 8 == 0) {
      const int row = lane_ / 8;
      const int chunk = lane_ % 8;
      const char* from = first + row * stride + chunk * 16;
#pragma unroll
      for (int step = 0; step < kTokens; step += 4) {
#pragma unroll
        for (int panel = 0; panel < kRowChunks; panel += 8) {
          copy(base + Tile::chunk_offset(row + step, panel + chunk), from + panel * 16);
        }
        from += 4 * stride;
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
  __device__ __forceinline__ void copy_rows(Piece<Config>& piece, int first) {
    const int token = first + lane_ % kTokens;
    const bool seen = token >= source_.seen.begin && token < source_.seen.end;
    const RowAddress own = seen ? address(token) : RowAddress{nullptr, nullptr};
    const uint32_t key = shared_address(&piece.key);
    const uint32_t value = shared_address(&piece.value);
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

  __device__ __forceinline__ static const char* shuffled(const char* pointer, int lane) {
    return reinterpret_cast<const char*>(
        __shfl_sync(kWarp, reinterpret_cast<unsigned long long>(pointer), lane));
  }

  const AttentionParams<T>& params_;
  const CtaWork& work_;
  CopySource<Config>& source_;
  int lane_;
  typename Cache::Entry entry_;
};

}  // namespace attn::sm80
