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
  // Pieces of a thread, kLanes apart.
  static constexpr int kSteps = ((kPieces > kPiecesV ? kPieces : kPiecesV) + kLanes - 1) / kLanes;

  static_assert(32 % kLanes == 0, "a row is in one warp, which finds its extremes by shuffles");
  static_assert(kRows * kLanes == kThreads, "a thread has one row");
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

  // Row `row` of those of this CTA, of which it has kRows. With the CTA's number a heads + b, its
  // rows begin at token a kRows and b kRows heads further: no product leaves 32 bits.
  template <int kRows>
  __device__ __forceinline__ static WriteRow of(int row, int heads) {
    const unsigned divisor = heads;
    const unsigned whole = blockIdx.x / divisor;
    const unsigned rest = (blockIdx.x - whole * divisor) * kRows + row;
    const unsigned tokens = rest / divisor;
    return {static_cast<int>(whole * kRows + tokens), static_cast<int>(rest - tokens * divisor)};
  }
};

// An entry of running sums and the next.
struct Ends {
  int begin;
  int end;
};

// Volatile, so that the loads stand where they are written: the compiler puts those of the keys
// behind the test of the tokens, and each row then waits for one latency more.
__device__ __forceinline__ Ends load_ends(const int* sums) {
  Ends ends;
  asm volatile("ld.global.nc.s32 %0, [%1];\n" : "=r"(ends.begin) : "l"(sums));
  asm volatile("ld.global.nc.s32 %0, [%1 + 4];\n" : "=r"(ends.end) : "l"(sums));
  return ends;
}

// A sequence and where it begins and ends, in new tokens and in keys.
struct WriteSequence {
  int sequence;
  int q_begin;
  int q_end;
  int k_begin;
  int k_end;

  template <class T>
  __device__ __forceinline__ static WriteSequence load(const AttentionParams<T>& params,
                                                       int sequence) {
    const Ends queries = load_ends(params.cu_q_len + sequence);
    const Ends keys = load_ends(params.cu_k_len + sequence);
    return {sequence, queries.begin, queries.end, keys.begin, keys.end};
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

// This thread's pieces of a row that is read once; zeros beyond its end.
template <int kPieces, class T, int kLanes, int kSteps>
__device__ __forceinline__ void load_row(RowPieces<T, kLanes, kSteps>& x, const T* row, int lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (x.template has<kPieces>(step, lane)) {
      x.steps[step].vector = __ldcs(reinterpret_cast<const uint4*>(row) + x.piece(step, lane));
    }
  }
}

template <class Config>
__device__ __forceinline__ void write(WriteStorage<Config>& storage,
                                      const AttentionParams<typename Config::T>& params) {
  using Traits = WriteTraits<Config>;
  using Kv = typename Traits::Kv;
  using T = typename Config::T;

  // 1. The rows of this CTA are on their way.
  const int heads = params.num_kv_heads;
  const int place = static_cast<int>(threadIdx.x / Traits::kLanes);
  const int lane = static_cast<int>(threadIdx.x % Traits::kLanes);
  const WriteRow row = WriteRow::of<Traits::kRows>(place, heads);
  RowPieces<T, Traits::kLanes, Traits::kSteps> k{};
  RowPieces<T, Traits::kLanes, Traits::kSteps> v{};
  if (row.token < params.token_num) {
    const int64_t token = row.token;
    load_row<Traits::kPieces>(
        k, params.k + token * params.k_stride + row.head * Config::kHeadDim, lane);
    load_row<Traits::kPiecesV>(
        v, params.v + token * params.v_stride + row.head * Config::kHeadDimV, lane);
  }

  // 2. Meanwhile, the first threads find where they go.
  if (threadIdx.x < Traits::kRows) {
    place_row<Config>(
        storage, params, WriteRow::of<Traits::kRows>(threadIdx.x, heads), threadIdx.x);
  }
  __syncthreads();  // the places are visible to all warps

  // 3. Write.
  const RowAddress rows = storage.rows[place];
  RowAddress pairs{};
  if constexpr (Traits::Kv::kHasPairs) {
    pairs = storage.pairs[place];
  }
  const float k_scale = inverse_scale<Kv>(params.k_scale, params.kv_scale_stride, row.head);
  const float v_scale = inverse_scale<Kv>(params.v_scale, params.kv_scale_stride, row.head);
  write_row<Kv, Traits::kPieces>(k, lane, rows.k, pairs.k, k_scale);
  write_row<Kv, Traits::kPiecesV>(v, lane, rows.v, pairs.v, v_scale);
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct CacheWriter<Config>::SharedStorage : sm80::WriteStorage<Config> {};

}  // namespace attn
