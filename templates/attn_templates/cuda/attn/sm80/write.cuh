// SPDX-License-Identifier: Apache-2.0
// The cache writer: rows of K and V of new tokens go to their places in a cache, quantised where
// the cache is. New token i of a sequence is its key k_len - q_len + i; no other row is touched,
// and writing twice leaves the same bits. Where keys are spread over ranks, a rank writes its own
// of the new tokens.
//
// Rows are numbered token by token, then head by head. A warp writes some rows side by side, which
// is a step; of a launch of n warps, warp i has the steps i, i + n, i + 2 n, ... Its lanes find the
// places of 32 rows, one each, while the first of them are on their way, and the rows of a step are
// loaded before those of the step before it are quantised.
#pragma once

#include "attn/config.h"
#include "attn/key_range.cuh"
#include "attn/pair_iterator.cuh"
#include "attn/sm80/write_row.cuh"
#include "attn/sm80/write_sequence.cuh"
#include "attn/sm90/dependent_launch.cuh"

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
  static constexpr int kWarps = TileOf<Config>::kThreads / 32;
  // Threads of a row of K and of V; the last ones idle where that is not a power of two.
  static constexpr int kLanes = TileOf<Config>::kLanes;
  static constexpr int kPiecesOfLane =
      ((kPieces > kPiecesV ? kPieces : kPiecesV) + kLanes - 1) / kLanes;
  // Pieces of a thread are kLanes apart, or neighbours where their codes would fill no 32 bytes,
  // which is what memory writes at a time.
  static constexpr bool kAreNeighbours = Kv::kIsQuantised && kLanes * Kv::kBits < 32 &&
                                         kPieces == kPiecesV && kPieces == kLanes * kPiecesOfLane;
  // Rows of a step, and steps of the rows that the lanes of a warp find places for.
  static constexpr int kRows = 32 / kLanes;
  static constexpr int kSteps = kLanes;

  static_assert(32 % kLanes == 0, "a row is in one warp, which finds its extremes by shuffles");
  static_assert(kRows * kWarps == TileOf<Config>::kRows, "the manifest counts the rows of a step");
};

// What else is known of a row of K and of V: where (scale, zero) go; of e4m3 1 / k_scale and
// 1 / v_scale of its head.
template <class Kv, bool kHasPairs = Kv::kHasPairs>
struct RowExtra {
  using Type = float2;
};

template <class Kv>
struct RowExtra<Kv, true> {
  using Type = RowAddress;
};

// Where 32 rows of a warp lie and where they go; null: they are not written.
template <class Kv>
struct WarpPlaces {
  alignas(16) RowAddress from[32];
  alignas(16) RowAddress to[32];
  typename RowExtra<Kv>::Type extra[32];
};

template <class Config>
struct WriteStorage {
  WarpPlaces<typename WriteTraits<Config>::Kv> warps[WriteTraits<Config>::kWarps];
};

// Where a launch may begin while the one before it ends, that one is waited for: it may still write
// rows, lengths and tables, and read the cache. The next launch may come as soon as all of this one
// are here. Every warp with rows waits, so that a launch that waits for this one waits for those
// before it, too.
__device__ __forceinline__ void wait_for_former_launch() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (sm90::wait_for_former_launch(); sm90::allow_next_launch();))
}

// Reads a word of each line of the parameters. A line takes its time when it is first needed: so
// all come together, while the launch before this one ends. They need a use, or they are not read:
// this one is rare, and does no harm.
template <class T>
__device__ __forceinline__ void touch(const AttentionParams<T>& params) {
  constexpr int kLine = 64;
  int seen = 0;
#pragma unroll
  for (int at = 0; at < static_cast<int>(sizeof(params)); at += kLine) {
    seen |= *reinterpret_cast<const int*>(reinterpret_cast<const char*>(&params) + at);
  }
  if (seen == 0) {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(params.cu_q_len));
  }
}

// Writes the rows of a call that are a warp's.
template <class Config>
class RowWriter {
  using Traits = WriteTraits<Config>;
  using Kv = typename Traits::Kv;
  using T = typename Config::T;
  using Cache = typename Traits::Cache;
  using Pieces = RowPieces<T, Traits::kLanes, Traits::kPiecesOfLane, Traits::kAreNeighbours>;
  using Places = WarpPlaces<Kv>;
  static constexpr int kSteps = Traits::kSteps;

  // A thread's pieces of a row of K and of V.
  struct Rows {
    Pieces k;
    Pieces v;
  };

 public:
  __device__ __forceinline__ RowWriter(const AttentionParams<T>& params, Places& places)
      : params_(params),
        places_(places),
        lane_(threadIdx.x % 32),
        rows_(static_cast<unsigned>(params.token_num) * params.num_kv_heads),
        warps_(gridDim.x * Traits::kWarps) {}

  __device__ __forceinline__ void write() {
    const unsigned steps = (rows_ + Traits::kRows - 1) / Traits::kRows;
    const unsigned warp = blockIdx.x * Traits::kWarps + threadIdx.x / 32;
    for (unsigned first = warp; first < steps; first += kSteps * warps_) {
      write_steps(first, min((steps - first + warps_ - 1) / warps_, kSteps));
      __syncwarp();  // the places are read before others take their room
    }
  }

 private:
  // Steps first, first + warps_, ..., `count` of them.
  __device__ __forceinline__ void write_steps(unsigned first, int count) {
    // 1. The rows of the first step are on their way.
    const unsigned row =
        (first + lane_ / Traits::kRows * warps_) * Traits::kRows + lane_ % Traits::kRows;
    const unsigned heads = params_.num_kv_heads;
    const int token = static_cast<int>(row / heads);
    const int head = static_cast<int>(row - token * heads);
    const bool is_row = lane_ / Traits::kRows < count && row < rows_;
    places_.from[lane_] = is_row ? source(token, head) : RowAddress{nullptr, nullptr};
    __syncwarp();  // where the rows lie is visible to all lanes
    wait_for_former_launch();
    Rows even;
    Rows odd;
    load(even, 0);

    // 2. Meanwhile, each lane finds where its row goes.
    places_.to[lane_] = {nullptr, nullptr};
    if (is_row) {
      place(token, head);
    }
    __syncwarp();  // the places are visible to all lanes

    // 3. Write, one step behind the loads.
#pragma unroll 1
    for (int step = 0; step < count; step += 2) {
      load(odd, step + 1);
      store(even, step);
      load(even, step + 2);
      if (step + 1 < count) {
        store(odd, step + 1);
      }
    }
  }

  __device__ __forceinline__ RowAddress source(int64_t token, int head) const {
    const T* const k = params_.k + token * params_.k_stride + head * Config::kHeadDim;
    const T* const v = params_.v + token * params_.v_stride + head * Config::kHeadDimV;
    return {reinterpret_cast<const char*>(k), reinterpret_cast<const char*>(v)};
  }

  // Finds where a row goes.
  __device__ __forceinline__ void place(int token, int head) {
    const WriteSequence own = sequence_of(params_, token);
    const int sequence = own.sequence;
    if (!own.has(token) || (params_.finished != nullptr && params_.finished[sequence])) {
      return;
    }
    const int length = own.k_end - own.k_begin;
    const int position = length - (own.q_end - token);
    const KeyShards shards =
        shards_of(params_.cp_sharding, params_.cp_size, params_.cp_rank, params_.cp_chunk, length);
    if (position < 0 || !shards.holds(position)) {
      return;
    }
    const int key = shards.keys_before(position);
    const Cache cache = Cache::make(params_, sequence, head);
    typename Cache::Entry entry{};
    if constexpr (Cache::kGathered) {
      entry = cache.entry(key);
      places_.to[lane_] = cache.row(params_, key, entry);
    } else {
      places_.to[lane_] = cache.row(params_, key);
    }
    if constexpr (Kv::kHasPairs) {
      places_.extra[lane_] = Traits::Pairs::make(params_, sequence, head).pair(params_, key, entry);
    } else if constexpr (Kv::kIsQuantised) {
      const int stride = params_.kv_scale_stride;
      places_.extra[lane_] = {inverse_scale<Kv>(params_.k_scale, stride, head),
                              inverse_scale<Kv>(params_.v_scale, stride, head)};
    }
  }

  // This lane's pieces of a step's row.
  __device__ __forceinline__ void load(Rows& x, int step) const {
    if (step >= kSteps) {
      return;
    }
    const RowAddress from = places_.from[row_of(step)];
    if (from.k != nullptr) {
      load_pieces<Traits::kPieces>(x.k, from.k);
      load_pieces<Traits::kPiecesV>(x.v, from.v);
    }
  }

  template <int kPieces>
  __device__ __forceinline__ void load_pieces(Pieces& x, const char* row) const {
#pragma unroll
    for (int i = 0; i < Traits::kPiecesOfLane; ++i) {
      if (x.template has<kPieces>(i, piece_lane())) {
        // Read once: it need not stay in a cache.
        x.steps[i].vector = __ldcs(reinterpret_cast<const uint4*>(row) + x.piece(i, piece_lane()));
      }
    }
  }

  __device__ __forceinline__ void store(const Rows& x, int step) const {
    const int row = row_of(step);
    const RowAddress to = places_.to[row];
    RowAddress pairs{};
    float2 inverses{};
    if constexpr (Kv::kHasPairs) {
      pairs = places_.extra[row];
    } else if constexpr (Kv::kIsQuantised) {
      inverses = places_.extra[row];
    }
    write_row<Kv, Traits::kPieces>(x.k, piece_lane(), to.k, pairs.k, inverses.x);
    write_row<Kv, Traits::kPiecesV>(x.v, piece_lane(), to.v, pairs.v, inverses.y);
  }

  // Of the 32 rows, the one of this lane in a step.
  __device__ __forceinline__ int row_of(int step) const {
    return step * Traits::kRows + lane_ / Traits::kLanes;
  }

  __device__ __forceinline__ int piece_lane() const { return lane_ % Traits::kLanes; }

  const AttentionParams<T>& params_;
  Places& places_;
  int lane_;
  unsigned rows_;   // of the call
  unsigned warps_;  // of the launch
};

template <class Config>
__device__ __forceinline__ void write(WriteStorage<Config>& storage,
                                      const AttentionParams<typename Config::T>& params) {
  touch(params);
  RowWriter<Config>(params, storage.warps[threadIdx.x / 32]).write();
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct CacheWriter<Config>::SharedStorage : sm80::WriteStorage<Config> {};

}  // namespace attn
