// SPDX-License-Identifier: Apache-2.0
// The cache writer: rows of K and V of new tokens go to their places in a cache, quantised where
// the cache is. New token i of a sequence is its key k_len - q_len + i; no other row is touched,
// and writing twice leaves the same bits. Where keys are spread over ranks, a rank writes its own
// of the new tokens.
#pragma once

#include "attn/config.h"
#include "attn/key_range.cuh"
#include "attn/pair_iterator.cuh"
#include "attn/sm80/write_row.cuh"

namespace attn::sm80 {

template <class Config>
struct WriteTraits {
  using T = typename Config::T;
  using Tkv = typename Config::Tkv;
  using Kv = KvTraits<T, Tkv>;
  using Cache = CacheIterator<Config::kCache, T, Config::kHeadDim, Tkv>;
  using Pairs = PairIterator<Config::kCache, T, Config::kHeadDim, Tkv>;

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

// Where the rows of K and V of a token and head go, and their pairs; null: they are not written.
template <int kRows, bool kHasPairs>
struct WritePlaces {
  alignas(16) RowAddress rows[kRows];
  alignas(16) RowAddress pairs[kRows];
};

template <int kRows>
struct WritePlaces<kRows, false> {
  alignas(16) RowAddress rows[kRows];
};

template <class Config>
struct WriteStorage : WritePlaces<WriteTraits<Config>::kRows, WriteTraits<Config>::Kv::kHasPairs> {
};

// A row of the call: rows are numbered token by token, then head by head.
struct WriteRow {
  int token;
  int head;

  __device__ __forceinline__ static WriteRow of(int64_t row, int heads) {
    const int64_t token = row / heads;
    return {static_cast<int>(token), static_cast<int>(row - token * heads)};
  }

  // `rows` further, given as whole tokens and rest.
  __device__ __forceinline__ void advance(int tokens, int rest, int heads) {
    token += tokens;
    head += rest;
    if (head >= heads) {
      head -= heads;
      ++token;
    }
  }
};

// A sequence and where it begins and ends, in new tokens and in keys.
struct WriteSequence {
  int sequence;
  int q_begin;
  int q_end;
  int k_begin;
  int k_end;

  // All four ends are read at once: one latency.
  template <class T>
  __device__ __forceinline__ static WriteSequence load(const AttentionParams<T>& params,
                                                       int sequence) {
    const int* const q = params.cu_q_len + sequence;
    const int* const k = params.cu_k_len + sequence;
    return {sequence, q[0], q[1], k[0], k[1]};
  }

  __device__ __forceinline__ bool has(int token) const { return q_begin <= token && token < q_end; }
};

// The sequence of a token; one that has not got it where no sequence has. The first guess is right
// where all sequences have as many tokens.
template <class T>
__device__ __forceinline__ WriteSequence sequence_of(const AttentionParams<T>& params, int token) {
  const float mean = static_cast<float>(params.batch_size) / static_cast<float>(params.token_num);
  const int guess = min(static_cast<int>((token + 0.5f) * mean), params.batch_size - 1);
  const WriteSequence guessed = WriteSequence::load(params, guess);
  if (guessed.has(token)) {
    return guessed;
  }
  // The first that ends behind the token.
  int low = 0;
  int high = params.batch_size - 1;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (params.cu_q_len[middle + 1] <= token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return WriteSequence::load(params, low);
}

// Finds where a row goes.
template <class Config>
__device__ __forceinline__ void place_row(WriteStorage<Config>& storage,
                                          const AttentionParams<typename Config::T>& params,
                                          WriteRow row,
                                          int place) {
  using Traits = WriteTraits<Config>;
  using Cache = typename Traits::Cache;
  storage.rows[place] = {nullptr, nullptr};
  if (row.token >= params.token_num) {
    return;
  }
  const WriteSequence own = sequence_of(params, row.token);
  const int sequence = own.sequence;
  if (!own.has(row.token) || (params.finished != nullptr && params.finished[sequence])) {
    return;
  }
  const int length = own.k_end - own.k_begin;
  const int position = length - (own.q_end - row.token);
  const KeyShards shards =
      shards_of(params.cp_sharding, params.cp_size, params.cp_rank, params.cp_chunk, length);
  if (position < 0 || !shards.holds(position)) {
    return;
  }
  const int key = shards.keys_before(position);
  const Cache cache = Cache::make(params, sequence, row.head);
  typename Cache::Entry entry{};
  if constexpr (Cache::kGathered) {
    entry = cache.entry(key);
    storage.rows[place] = cache.row(params, key, entry);
  } else {
    storage.rows[place] = cache.row(params, key);
  }
  if constexpr (Traits::Kv::kHasPairs) {
    storage.pairs[place] = Traits::Pairs::make(params, sequence, row.head).pair(params, key, entry);
  }
}

// The pieces of a thread of a row of K and of the row of V beside it.
template <class T>
struct Pieces {
  Elements<T> k;
  Elements<T> v;
};

__device__ __forceinline__ uint4 load_once(const void* from) {
  return __ldcs(static_cast<const uint4*>(from));
}

template <class Config>
__device__ __forceinline__ void write(WriteStorage<Config>& storage,
                                      const AttentionParams<typename Config::T>& params) {
  using Traits = WriteTraits<Config>;
  using Kv = typename Traits::Kv;
  using T = typename Config::T;

  // 1. The rows of this CTA are on their way.
  const int heads = params.num_kv_heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Traits::kRows;
  const int own_row = static_cast<int>(threadIdx.x) / Traits::kLanes;
  const int lane = static_cast<int>(threadIdx.x) % Traits::kLanes;
  const int step_tokens = Traits::kRowsAtATime / heads;
  const int step_rest = Traits::kRowsAtATime - step_tokens * heads;
  const WriteRow first = WriteRow::of(first_row + own_row, heads);
  WriteRow row = first;
  Pieces<T> pieces[Traits::kSteps];
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    pieces[step].k.vector = pieces[step].v.vector = uint4{};
    if (row.token < params.token_num) {
      const int64_t token = row.token;
      if (lane < Traits::kPieces) {
        pieces[step].k.vector =
            load_once(params.k + token * params.k_stride + row.head * Config::kHeadDim + lane * 8);
      }
      if (lane < Traits::kPiecesV) {
        pieces[step].v.vector =
            load_once(params.v + token * params.v_stride + row.head * Config::kHeadDimV + lane * 8);
      }
    }
    row.advance(step_tokens, step_rest, heads);
  }

  // 2. Meanwhile: where they go.
  for (int place = threadIdx.x; place < Traits::kRows; place += Traits::kThreads) {
    place_row<Config>(storage, params, WriteRow::of(first_row + place, heads), place);
  }
  __syncthreads();  // the places are visible to all warps

  // 3. Write.
  row = first;
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int place = step * Traits::kRowsAtATime + own_row;
    const RowAddress rows = storage.rows[place];
    RowAddress pairs{};
    if constexpr (Traits::Kv::kHasPairs) {
      pairs = storage.pairs[place];
    }
    const float k_scale = inverse_scale<Kv>(params.k_scale, params.kv_scale_stride, row.head);
    const float v_scale = inverse_scale<Kv>(params.v_scale, params.kv_scale_stride, row.head);
    write_row<Kv, Traits::kLanes, Traits::kPieces>(pieces[step].k, lane, rows.k, pairs.k, k_scale);
    write_row<Kv, Traits::kLanes, Traits::kPiecesV>(pieces[step].v, lane, rows.v, pairs.v, v_scale);
    row.advance(step_tokens, step_rest, heads);
  }
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct CacheWriter<Config>::SharedStorage : sm80::WriteStorage<Config> {};

}  // namespace attn
