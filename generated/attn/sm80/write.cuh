// SPDX-License-Identifier: Apache-2.0
// The cache writer: rows of K and V of new tokens go to their places in a cache, quantised where
// the cache is. New token i of a sequence is its key k_len - q_len + i; no other row is touched,
// and writing twice leaves the same bits.
#pragma once

#include "attn/config.h"
#include "attn/pair_iterator.cuh"
#include "attn/sm80/quantise.cuh"

namespace attn::sm80 {

template <class Config>
struct WriteTraits {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  using Kv = KvTraits<T, Tkv>;
  using Cache = CacheIterator<Config::kCache, T, Config::kHeadDim, Tkv>;

  static constexpr int kPieces = Config::kHeadDim / 8;  // of 16 bytes
  static constexpr int kPiecesV = Config::kHeadDimV / 8;
  static constexpr int kThreads = TileOf<Config>::kThreads;
  static constexpr int kRows = TileOf<Config>::kRows;
  // Threads of a row of K and of V; the last ones idle where that is not a power of two.
  static constexpr int kLanes = TileOf<Config>::kLanes;
  static constexpr int kRowsAtATime = kThreads / kLanes;
  static constexpr int kSteps = kRows / kRowsAtATime;

  static_assert(kPieces <= kLanes && kPiecesV <= kLanes, "a thread has one piece of a row");
  static_assert(32 % kLanes == 0, "a row is in one warp, which finds its extremes by shuffles");
  static_assert(kRows % kRowsAtATime == 0, "every step takes the same number of rows");
};

// Where a token goes.
struct alignas(16) Destination {
  int sequence;
  int key;        // of the sequence; negative: the token is not written
  int64_t entry;  // what the block table says of the key's block
};

template <class Config>
struct WriteStorage {
  Destination tokens[WriteTraits<Config>::kRows];  // every row may be another token's
};

// The first sequence that ends behind a token; batch_size where there is none.
__device__ __forceinline__ int sequence_of(const int* cu_q_len, int batch_size, int token) {
  int low = 0;
  int high = batch_size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (cu_q_len[middle + 1] <= token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class Config>
__device__ __forceinline__ Destination
destination_of(const AttentionParams<typename Config::T>& params, int token) {
  using Cache = typename WriteTraits<Config>::Cache;
  Destination to{sequence_of(params.cu_q_len, params.batch_size, token), -1, 0};
  if (to.sequence == params.batch_size ||
      (params.finished != nullptr && params.finished[to.sequence])) {
    return to;
  }
  const int k_len = params.cu_k_len[to.sequence + 1] - params.cu_k_len[to.sequence];
  to.key = k_len - (params.cu_q_len[to.sequence + 1] - token);
  if constexpr (Cache::kGathered) {
    if (to.key >= 0) {
      to.entry = static_cast<int64_t>(Cache::make(params, to.sequence, 0).entry(to.key));
    }
  }
  return to;
}

// The rows of one step of a thread: its pieces of a row of K and of the row of V beside it.
template <class T>
struct Pieces {
  Elements<T> k;
  Elements<T> v;
};

__device__ __forceinline__ uint4 load_once(const void* from) {
  return __ldcs(static_cast<const uint4*>(from));
}

// The extremes of a row, in all of its lanes. Lanes without a piece give none.
template <int kLanes, class T>
__device__ __forceinline__ void extremes(const Elements<T>& x,
                                         bool has_piece,
                                         float& smallest,
                                         float& largest) {
  constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);
  smallest = kInfinity;
  largest = -kInfinity;
  if (has_piece) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      smallest = fminf(smallest, to_float(x.values[i]));
      largest = fmaxf(largest, to_float(x.values[i]));
    }
  }
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    smallest = fminf(smallest, __shfl_xor_sync(0xffffffffu, smallest, lane));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  }
}

// Writes one row: lane `lane` of it has the piece `x`, if any.
//   row    of the cache        pair    its (scale, zero), where the cache has pairs
//   scale  1 / k_scale or 1 / v_scale of e4m3
template <class Config, int kPieces, class T>
__device__ __forceinline__ void write_row(const Elements<T>& x,
                                          int lane,
                                          bool is_written,
                                          const char* row,
                                          const char* pair,
                                          float scale) {
  using Kv = typename WriteTraits<Config>::Kv;
  const bool has_piece = lane < kPieces;
  char* const to = const_cast<char*>(row) + lane * Kv::kBits;
  if constexpr (Kv::kHasPairs) {
    float smallest;
    float largest;
    extremes<WriteTraits<Config>::kLanes>(x, has_piece, smallest, largest);
    const auto scaled = RowScale<T>::template make<Kv::kLevels>(smallest, largest);
    if (is_written && has_piece) {
      *reinterpret_cast<Codes<Kv::kBits>*>(to) = integer_codes<Kv::kBits>(x, scaled);
    }
    if (is_written && lane == 0) {
      T* const place = reinterpret_cast<T*>(const_cast<char*>(pair));
      place[0] = scaled.scale;
      place[1] = scaled.zero;
    }
  } else if (is_written && has_piece) {
    if constexpr (Kv::kIsQuantised) {
      *reinterpret_cast<Codes<8>*>(to) = e4m3_codes(x, scale);
    } else {
      *reinterpret_cast<uint4*>(to) = x.words;
    }
  }
}

// 1 / scale of a KV head of an e4m3 cache.
template <class Config>
__device__ __forceinline__ float inverse_scale(const float* scales, int stride, int kv_head) {
  if constexpr (WriteTraits<Config>::Kv::kType == KvType::kE4m3) {
    return scales == nullptr ? 1.0f : __fdiv_rn(1.0f, scales[kv_head * stride]);
  } else {
    return 1.0f;
  }
}

template <class Config>
__device__ __forceinline__ void write(WriteStorage<Config>& storage,
                                      const AttentionParams<typename Config::T>& params) {
  using Traits = WriteTraits<Config>;
  using T = typename Config::T;
  using Kv = typename Traits::Kv;
  using Cache = typename Traits::Cache;

  // 1. The rows of this CTA, numbered token by token, then head by head, are on their way.
  const int heads = params.num_kv_heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Traits::kRows;
  const int first_token = static_cast<int>(first_row / heads);
  const int first_head = static_cast<int>(first_row % heads);
  const int row_of_thread = static_cast<int>(threadIdx.x) / Traits::kLanes;
  const int lane = static_cast<int>(threadIdx.x) % Traits::kLanes;
  Pieces<T> pieces[Traits::kSteps];
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int row = first_head + step * Traits::kRowsAtATime + row_of_thread;
    const int64_t token = first_token + row / heads;
    const int head = row % heads;
    pieces[step].k.words = pieces[step].v.words = uint4{};
    if (token < params.token_num) {
      if (lane < Traits::kPieces) {
        pieces[step].k.words =
            load_once(params.k + token * params.k_stride + head * Config::kHeadDim + lane * 8);
      }
      if (lane < Traits::kPiecesV) {
        pieces[step].v.words =
            load_once(params.v + token * params.v_stride + head * Config::kHeadDimV + lane * 8);
      }
    }
  }

  // 2. Meanwhile: where their tokens go.
  const int tokens =
      min((first_head + Traits::kRows - 1) / heads + 1, params.token_num - first_token);
  for (int token = threadIdx.x; token < tokens; token += Traits::kThreads) {
    storage.tokens[token] = destination_of<Config>(params, first_token + token);
  }
  __syncthreads();  // the destinations are visible to all warps

  // 3. Write.
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int row = first_head + step * Traits::kRowsAtATime + row_of_thread;
    const int token = row / heads;
    const int head = row % heads;
    Destination to{0, -1, 0};
    if (token < tokens) {
      to = storage.tokens[token];
    }
    const bool is_written = to.key >= 0;
    RowAddress rows{};
    RowAddress pairs{};
    if (is_written) {
      const Cache cache = Cache::make(params, to.sequence, head);
      if constexpr (Cache::kGathered) {
        rows = cache.row(params, to.key, static_cast<typename Cache::Entry>(to.entry));
      } else {
        rows = cache.row(params, to.key);
      }
      if constexpr (Kv::kHasPairs) {
        using Pairs = PairIterator<Config::kCache, T, Config::kHeadDim, typename Config::Tkv>;
        pairs = Pairs::make(params, to.sequence, head).pair(params, to.key, to.entry);
      }
    }
    const float k_scale = inverse_scale<Config>(params.k_scale, params.kv_scale_stride, head);
    const float v_scale = inverse_scale<Config>(params.v_scale, params.kv_scale_stride, head);
    write_row<Config, Traits::kPieces>(pieces[step].k, lane, is_written, rows.k, pairs.k, k_scale);
    write_row<Config, Traits::kPiecesV>(pieces[step].v, lane, is_written, rows.v, pairs.v, v_scale);
  }
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct CacheWriter<Config>::SharedStorage : sm80::WriteStorage<Config> {};

}  // namespace attn
