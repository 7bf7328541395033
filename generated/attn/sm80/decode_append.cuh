// SPDX-License-Identifier: Apache-2.0
// A decode call that brings new rows of K and V along writes them into the cache before it reads
// the cache: what a cache writer would leave, without its launch.
//
// A warp writes the new rows that it reads itself, and no others, before it copies the first of
// their segment. The ranges of a column cut its keys into disjoint parts, and the warps of a CTA
// their stages: so one warp of a column writes a row, and none waits for another. Every
// new row is written, because the query that came with it sees it. Columns of one KV head (tiles of
// query heads or of query tokens) write a row several times: the same bits from the same source, so
// that it does not matter which of them a reader meets.
#pragma once

#include "attn/sm80/decode_walk.cuh"
#include "attn/sm80/write_row.cuh"

namespace attn::sm80 {

template <class Config>
class Appender {
  using Traits = DecodeTraits<Config>;
  using Kv = typename Traits::Kv;
  using T = typename Config::T;
  using Cache = typename Traits::Cache;

  static constexpr int kPieces = Config::kHeadDim / 8;  // of 16 bytes
  // Lanes of a row: K and V side by side, where both fit a warp.
  static constexpr int kLanes = kPieces <= 16 ? 16 : 32;

 public:
  __device__ __forceinline__
  Appender(const AttentionParams<T>& params, int kv_head, int warp, int lane)
      : params_(params), kv_head_(kv_head), warp_(warp), lane_(lane) {}

  // Writes the new rows of a segment that this warp reads itself.
  __device__ __forceinline__ void append(const Segment& segment) const {
    const int first_new = segment.keys - segment.tokens.count;
    const int begin = max(max(first_new, segment.seen.begin), first_key(segment.stages.begin));
    const int end = min(segment.seen.end, first_key(segment.stages.end));
#pragma unroll 1
    for (int key = begin; key < end; ++key) {
      if (key % Traits::kCtaS / Traits::kWarpTokens == warp_) {
        write(segment.sequence, key, segment.tokens.begin + key - first_new);
      }
    }
  }

 private:
  __device__ __forceinline__ static int first_key(int stage) { return stage * Traits::kCtaS; }

  // New row `token` of K and of V becomes a key of a sequence.
  __device__ __forceinline__ void write(int sequence, int key, int64_t token) const {
    const Cache cache = Cache::make(params_, sequence, kv_head_);
    typename Cache::Entry entry{};
    RowAddress row;
    if constexpr (Cache::kGathered) {
      entry = cache.entry(key);
      row = cache.row(params_, key, entry);
    } else {
      row = cache.row(params_, key);
    }
    RowAddress pair{};
    if constexpr (Kv::kHasPairs) {
      pair = Traits::Pairs::make(params_, sequence, kv_head_).pair(params_, key, entry);
    }
#pragma unroll
    for (int part = 0; part < 2 * kLanes / 32; ++part) {
      const bool is_key = kLanes == 16 ? lane_ < 16 : part == 0;
      const T* const from =
          is_key ? params_.k + token * params_.k_stride : params_.v + token * params_.v_stride;
      const float scale = inverse_scale<Kv>(
          is_key ? params_.k_scale : params_.v_scale, params_.kv_scale_stride, kv_head_);
      const int lane = lane_ % kLanes;
      RowPieces<T, kLanes, 1> x;
      if (lane < kPieces) {
        x.steps[0].vector =
            reinterpret_cast<const uint4*>(from + kv_head_ * Config::kHeadDim)[lane];
      }
      write_row<Kv, kPieces>(x, lane, is_key ? row.k : row.v, is_key ? pair.k : pair.v, scale);
    }
  }

  const AttentionParams<T>& params_;
  int kv_head_;
  int warp_;
  int lane_;
};

}  // namespace attn::sm80
