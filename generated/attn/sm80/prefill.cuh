// SPDX-License-Identifier: Apache-2.0
// Prefill attention for sm_80 and later: one CTA computes kCtaQ rows of one head against the keys
// they see.
#pragma once

#include "attn/cta_map.cuh"
#include "attn/key_range.cuh"
#include "attn/sm80/prefill_traits.cuh"
#include "attn/sm80/softmax.cuh"
#include "attn/split.cuh"

namespace attn::sm80 {

// --- copies -------------------------------------------------------------------------------------

// Starts the copies of a tile's rows, 16 bytes each. `source(row)` is the address of a row; rows
// from `rows` on become zero, so that what lies there in memory, NaN included, never meets the
// tensor cores.
template <int kThreads, int kRows, int kChunks, class Tile, class Source>
__device__ __forceinline__ void copy_rows(Tile& tile, int rows, Source source) {
  constexpr int kCopies = kRows * kChunks;
  const uint32_t base = shared_address(&tile);
  // Opaque: dozens of row addresses would otherwise live across the loop over keys.
  const int thread = opaque(threadIdx.x);
#pragma unroll
  for (int first = 0; first < kCopies; first += kThreads) {
    const int copy = first + thread;
    if (kCopies % kThreads == 0 || copy < kCopies) {
      const int row = copy / kChunks;
      const int chunk = copy % kChunks;
      copy_async_16_or_zero(
          base + Tile::chunk_offset(row, chunk), source(row) + chunk * 16, row < rows);
    }
  }
}

// The same for rows that are all there and lie `stride` bytes apart. Where the threads take whole
// rows at a time, a thread stays in its column and only steps down.
template <int kThreads, int kRows, int kChunks, class Tile>
__device__ __forceinline__ void copy_rows_evenly(Tile& tile,
                                                 const char* first_row,
                                                 int64_t stride) {
  constexpr int kCopies = kRows * kChunks;
  if constexpr (kThreads % kChunks == 0 && kCopies % kThreads == 0) {
    constexpr int kStep = kThreads / kChunks;
    const int thread = opaque(threadIdx.x);
    const int row = thread / kChunks;
    const int chunk = thread % kChunks;
    const uint32_t base = shared_address(&tile);
    const char* from = first_row + row * stride + chunk * 16;
#pragma unroll
    for (int step = 0; step < kRows; step += kStep) {
      copy_async_16(base + Tile::chunk_offset(row + step, chunk), from);
      from += kStep * stride;
    }
  } else {
    copy_rows<kThreads, kRows, kChunks>(
        tile, kRows, [&](int row) { return first_row + row * stride; });
  }
}

// Starts the copy of the rows of Q.
template <class Config>
__device__ __forceinline__ void copy_queries(
    typename PrefillTraits<Config>::QueryTileStorage& query,
    const AttentionParams<typename Config::T>& params,
    const QueryTile& tile) {
  using Traits = PrefillTraits<Config>;
  const auto* const first = params.q + tile.first_token * params.stride +
                            static_cast<int64_t>(tile.head) * Traits::kHeadDim;
  copy_rows<Traits::kThreads, Traits::kCtaQ, Traits::kHeadDim / 8>(query, tile.rows, [&](int row) {
    return reinterpret_cast<const char*>(first + row * params.stride);
  });
}

// Moves tiles of K and V of one sequence and head into a ring of kStages slots, tile t to slot
// t % kStages. Gathered caches take two steps more: each thread finds the address of one row
// (look_up) and shows it to the others (publish); the two are apart so that the block table is read
// behind the arithmetic of a tile. A published tile may be copied after the next barrier.
template <class Config>
class TileStream {
  using Traits = PrefillTraits<Config>;
  using Storage = PrefillStorage<Config>;

 public:
  // storage.work must be visible.
  __device__ __forceinline__ TileStream(Storage& storage,
                                        const AttentionParams<typename Config::T>& params)
      : storage_(storage), params_(params) {}

  // Starts the copy of a tile, if the range has it, and closes a group in any case: wait_group
  // counts groups.
  __device__ __forceinline__ void copy(int tile) {
    if (tile >= storage_.work.keys.begin) {
      const int rows = storage_.work.tile.k_len - tile * Traits::kCtaS;
      if (rows >= Traits::kCtaS && storage_.work.cache.evenly_spaced(Traits::kCtaS)) {
        copy_evenly(tile);
      } else {
        copy_row_by_row(tile, rows);
      }
    }
    copy_async_commit();
  }

  __device__ __forceinline__ void look_up(int tile) {
    if constexpr (Traits::Cache::kGathered) {
      if (owns_key_of(tile)) {
        entry_ = storage_.work.cache.entry(key_of(tile));
      }
    }
  }

  __device__ __forceinline__ void publish(int tile) {
    if constexpr (Traits::Cache::kGathered) {
      if (owns_key_of(tile)) {
        storage_.rows[static_cast<unsigned>(tile) % 2][threadIdx.x] =
            storage_.work.cache.row(params_, key_of(tile), entry_);
      }
    }
  }

 private:
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kCtaS = Traits::kCtaS;
  static constexpr int kKeyChunks = Traits::kHeadDim / 8;
  static constexpr int kValueChunks = Traits::kHeadDimV / 8;

  __device__ __forceinline__ static int slot_of(int tile) {
    return static_cast<unsigned>(tile) % Traits::kStages;
  }

  __device__ __forceinline__ void copy_evenly(int tile) {
    const RowAddress first = row_address(tile, 0);
    const RowStride stride = storage_.work.cache.stride(params_);
    copy_rows_evenly<kThreads, kCtaS, kKeyChunks>(storage_.key[slot_of(tile)], first.k, stride.k);
    copy_rows_evenly<kThreads, kCtaS, kValueChunks>(
        storage_.value[slot_of(tile)], first.v, stride.v);
  }

  __device__ __forceinline__ void copy_row_by_row(int tile, int rows) {
    copy_rows<kThreads, kCtaS, kKeyChunks>(
        storage_.key[slot_of(tile)], rows, [&](int row) { return row_address(tile, row).k; });
    copy_rows<kThreads, kCtaS, kValueChunks>(
        storage_.value[slot_of(tile)], rows, [&](int row) { return row_address(tile, row).v; });
  }

  __device__ __forceinline__ RowAddress row_address(int tile, int row) const {
    if constexpr (Traits::Cache::kGathered) {
      return storage_.table(tile)[row];
    } else {
      return storage_.work.cache.row(params_, tile * kCtaS + row);
    }
  }

  // The key that this thread looks up. Rows without a key keep an old address: they become zero
  // unread.
  __device__ __forceinline__ static int key_of(int tile) {
    return tile * Traits::kCtaS + static_cast<int>(threadIdx.x);
  }

  __device__ __forceinline__ bool owns_key_of(int tile) const {
    return static_cast<int>(threadIdx.x) < Traits::kCtaS && tile >= storage_.work.keys.begin &&
           key_of(tile) < storage_.work.tile.k_len;
  }

  Storage& storage_;
  const AttentionParams<typename Config::T>& params_;
  typename Traits::Cache::Entry entry_{};
};

// --- arithmetic of one tile ---------------------------------------------------------------------

// The fragments of Q that a warp multiplies: held in registers, or read again for every tile.
template <class Config>
class QueryFragments {
  using Traits = PrefillTraits<Config>;
  using Storage = typename Traits::QueryTileStorage;

 public:
  // Q must be visible in shared memory.
  __device__ __forceinline__ void load(const Storage& query, int warp, int lane) {
    if constexpr (Traits::kQueryInRegisters) {
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
        for (int d = 0; d < Traits::kDepthFragments; ++d) {
          load_matrix_x4(held_[f][d], address(query, warp, lane).at(f, d));
        }
      }
    }
  }

  // fragments[f] = rows f * 16 and on, columns d * 16 and on
  __device__ __forceinline__ void get(uint32_t (&fragments)[Traits::kRowFragments][4],
                                      FragmentAddress<Storage> address,
                                      int d) const {
#pragma unroll
    for (int f = 0; f < Traits::kRowFragments; ++f) {
      if constexpr (Traits::kQueryInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          fragments[f][i] = held_[f][d][i];
        }
      } else {
        load_matrix_x4(fragments[f], address.at(f, d));
      }
    }
  }

  // Of the rows of this warp.
  __device__ __forceinline__ static FragmentAddress<Storage> address(const Storage& query,
                                                                     int warp,
                                                                     int lane) {
    auto address = FragmentAddress<Storage>::row_major(query, lane);
    address.origin += warp * Traits::kWarpRows * Storage::kPitchBytes;
    return address;
  }

 private:
  uint32_t held_[Traits::kQueryInRegisters ? Traits::kRowFragments : 1]
                [Traits::kQueryInRegisters ? Traits::kDepthFragments : 1][4];
};

// scores = Q * K^T
template <class Config, class Scores>
__device__ __forceinline__ void multiply_query_key(Scores& scores,
                                                   const QueryFragments<Config>& query,
                                                   const PrefillStorage<Config>& storage,
                                                   int slot,
                                                   int warp,
                                                   int lane) {
  using Traits = PrefillTraits<Config>;
  const auto query_address = QueryFragments<Config>::address(storage.query, warp, lane);
  const auto key_address =
      FragmentAddress<typename Traits::KeyTileStorage>::column_major(storage.key[slot], lane);
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[f][n][i] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int d = 0; d < Traits::kDepthFragments; ++d) {
    uint32_t q[Traits::kRowFragments][4];
    query.get(q, query_address, d);
#pragma unroll
    for (int n = 0; n < Traits::kKeyFragments; ++n) {
      uint32_t k[4];
      load_matrix_x4(k, key_address.at(n, d));
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
        multiply_add(scores[f][2 * n], q[f], k[0], k[1], typename Config::T{});
        multiply_add(scores[f][2 * n + 1], q[f], k[2], k[3], typename Config::T{});
      }
    }
  }
}

// score = -inf where the query of the row does not see the key of the column
template <class Config, class Scores>
__device__ __forceinline__ void mask_scores(Scores& scores,
                                            const Work<typename PrefillTraits<Config>::Cache>& work,
                                            int first_key,
                                            int warp,
                                            int lane) {
  using Traits = PrefillTraits<Config>;
  const int origin = first_key + lane % 4 * 2;  // key of this lane's column 0
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int query =
          work.tile.first_query + warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      const int end = work.visible.end(query) - origin;
#pragma unroll
      for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[f][n][2 * h + c];
          score = n * 8 + c < end ? score : -kInfinity;
        }
      }
      if (work.visible.window > 0) {
        const int begin = work.visible.first(query) - origin;
#pragma unroll
        for (int n = 0; n < 2 * Traits::kKeyFragments; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& score = scores[f][n][2 * h + c];
            score = n * 8 + c >= begin ? score : -kInfinity;
          }
        }
      }
    }
  }
}

// output += P * V. The accumulator layout of P, packed in pairs, is the A operand of the next
// product.
template <class Config, class Output, class Probabilities>
__device__ __forceinline__ void multiply_probability_value(
    Output& output,
    const Probabilities& p,
    const typename PrefillTraits<Config>::ValueTileStorage& value,
    int lane) {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  const auto address = FragmentAddress<typename Traits::ValueTileStorage>::row_major(value, lane);
#pragma unroll
  for (int k = 0; k < Traits::kKeyFragments; ++k) {
    uint32_t a[Traits::kRowFragments][4];
#pragma unroll
    for (int f = 0; f < Traits::kRowFragments; ++f) {
      a[f][0] = pack(p[f][2 * k][0], p[f][2 * k][1], T{});
      a[f][1] = pack(p[f][2 * k][2], p[f][2 * k][3], T{});
      a[f][2] = pack(p[f][2 * k + 1][0], p[f][2 * k + 1][1], T{});
      a[f][3] = pack(p[f][2 * k + 1][2], p[f][2 * k + 1][3], T{});
    }
#pragma unroll
    for (int n = 0; n < Traits::kValueFragments; ++n) {
      uint32_t v[4];
      load_matrix_x4_transposed(v, address.at(k, n));
#pragma unroll
      for (int f = 0; f < Traits::kRowFragments; ++f) {
        multiply_add(output[f][2 * n], a[f], v[0], v[1], T{});
        multiply_add(output[f][2 * n + 1], a[f], v[2], v[3], T{});
      }
    }
  }
}

// --- what leaves the CTA ------------------------------------------------------------------------

// Writes output / sum as 16-byte stores, through the warp's own rows of Q in shared memory, which
// nobody reads any more, and the rows' lse.
template <class Config, class Output, class Softmax>
__device__ __forceinline__ void store_output(
    typename PrefillTraits<Config>::QueryTileStorage& staging,
    Output& output,
    const Softmax& softmax,
    const AttentionParams<typename Config::T>& params,
    const QueryTile& tile,
    int warp,
    int lane) {
  using Traits = PrefillTraits<Config>;
  using T = typename Config::T;
  using Staging = typename Traits::QueryTileStorage;
  char* const base = reinterpret_cast<char*>(staging.data);
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      const float sum = softmax.sum[f][h];
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that sees nothing is zero
#pragma unroll
      for (int n = 0; n < 2 * Traits::kValueFragments; ++n) {
        *reinterpret_cast<uint32_t*>(base + Staging::chunk_offset(row, n) + lane % 4 * 4) =
            pack(output[f][n][2 * h] * inverse, output[f][n][2 * h + 1] * inverse, T{});
      }
      if (params.lse != nullptr && lane % 4 == 0 && row < tile.rows) {
        params.lse[static_cast<int64_t>(tile.head) * params.token_num + tile.first_token + row] =
            softmax.log_sum_exp(f, h);
      }
    }
  }
  __syncwarp();  // the warp's rows are complete

  constexpr int kChunks = Traits::kHeadDimV / 8;
#pragma unroll
  for (int first = 0; first < Traits::kWarpRows * kChunks; first += 32) {
    const int row = warp * Traits::kWarpRows + (first + lane) / kChunks;
    const int chunk = (first + lane) % kChunks;
    if (row < tile.rows) {
      // out [token_num, num_heads, head_dim_v]
      const int64_t out_row =
          static_cast<int64_t>(tile.first_token + row) * params.num_heads + tile.head;
      *reinterpret_cast<uint4*>(params.out + out_row * Traits::kHeadDimV + chunk * 8) =
          *reinterpret_cast<const uint4*>(base + Staging::chunk_offset(row, chunk));
    }
  }
}

// Writes what one split of the keys leaves: the unnormalised output, and (reference in log2 units,
// sum).
template <class Config, class Output, class Softmax>
__device__ __forceinline__ void store_partial(const Output& output,
                                              const Softmax& softmax,
                                              const AttentionParams<typename Config::T>& params,
                                              const QueryTile& tile,
                                              int warp,
                                              int lane) {
  using Traits = PrefillTraits<Config>;
#pragma unroll
  for (int f = 0; f < Traits::kRowFragments; ++f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * Traits::kWarpRows + f * 16 + h * 8 + lane / 4;
      if (row < tile.rows) {
        // [splits, token_num, num_heads]
        const int64_t token =
            static_cast<int64_t>(tile.split) * params.token_num + tile.first_token + row;
        const int64_t partial = token * params.num_heads + tile.head;
        float* const out = params.partial_O + partial * Traits::kHeadDimV + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2 * Traits::kValueFragments; ++n) {
          *reinterpret_cast<float2*>(out + n * 8) = {output[f][n][2 * h], output[f][n][2 * h + 1]};
        }
        if (lane % 4 == 0) {
          *reinterpret_cast<float2*>(params.partial_ML + partial * 2) = {softmax.reference[f][h],
                                                                         softmax.sum[f][h]};
        }
      }
    }
  }
}

// --- the kernel ---------------------------------------------------------------------------------

template <class Config>
__device__ __forceinline__ void prefill(PrefillStorage<Config>& storage,
                                        const Arguments<typename Config::T>& arguments) {
  using Traits = PrefillTraits<Config>;
  const AttentionParams<typename Config::T>& params = arguments.params;

  // 1. Which rows, which keys.
  const QueryTile tile = map_cta(params, arguments.plan, Traits::kCtaQ, blockIdx.x);
  if (tile.rows <= 0) {
    return;
  }
  const VisibleKeys visible{
      tile.q_len, tile.k_len, params.window_size, Config::kMask == Mask::kCausal};
  const int last_query = tile.first_query + tile.rows - 1;
  const TileRange tiles = tiles_of(visible.any(tile.first_query, last_query), Traits::kCtaS);
  const int splits = split_count(tiles.begin, tiles.end, arguments.plan);
  if (tile.split >= max(splits, 1)) {
    return;
  }
  if (threadIdx.x == 0) {
    const int kv_head = tile.head / (params.num_heads / params.num_kv_heads);
    storage.work = {tile,
                    split_range(tiles.begin, tiles.end, arguments.plan, tile.split),
                    Traits::Cache::make(params, tile.sequence, kv_head),
                    visible,
                    visible.all(tile.first_query, last_query),
                    splits};
  }
  __syncthreads();  // storage.work is visible to all warps
  const auto& work = storage.work;

  // 2. Start the copies: Q with the first tile, then as many tiles as the ring holds but one.
  const int last_tile = work.keys.end - 1;
  TileStream<Config> stream(storage, params);
  stream.look_up(last_tile);
  stream.publish(last_tile);
  copy_queries<Config>(storage.query, params, tile);
#pragma unroll
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    __syncthreads();  // the addresses published last are visible to all warps
    stream.copy(last_tile - stage);
    stream.look_up(last_tile - stage - 1);
    stream.publish(last_tile - stage - 1);
  }

  // 3. Walk over the keys, from the last tile to the first.
  QueryFragments<Config> query;
  OnlineSoftmax<Traits::kRowFragments> softmax(params.inv_sqrt_dh);
  float output[Traits::kRowFragments][2 * Traits::kValueFragments][4] = {};
#pragma unroll 1
  for (int key_tile = last_tile; key_tile >= work.keys.begin; --key_tile) {
    copy_async_wait<Traits::kStages - 2>();
    __syncthreads();  // this tile is visible to all, and all have left the slot filled next
    if (key_tile == work.keys.end - 1) {
      query.load(storage.query, threadIdx.x / 32, threadIdx.x % 32);
    }
    stream.copy(key_tile - (Traits::kStages - 1));

    const int warp = threadIdx.x / 32;
    const int lane = opaque(threadIdx.x) % 32;  // fragment addresses are recomputed, not kept
    const int slot = static_cast<unsigned>(key_tile) % Traits::kStages;
    const int first_key = key_tile * Traits::kCtaS;
    float scores[Traits::kRowFragments][2 * Traits::kKeyFragments][4];
    multiply_query_key<Config>(scores, query, storage, slot, warp, lane);
    if (first_key < work.seen_by_all.begin || first_key + Traits::kCtaS > work.seen_by_all.end) {
      mask_scores<Config>(scores, work, first_key, warp, lane);
    }
    stream.look_up(key_tile - Traits::kStages);
    softmax.update(scores, output);
    stream.publish(key_tile - Traits::kStages);
    multiply_probability_value<Config>(output, scores, storage.value[slot], lane);
  }
  softmax.finish();

  // 4. Leave the result, or this split's part of it.
  copy_async_wait<0>();
  __syncthreads();  // without keys, Q may still be on its way into the rows that take the output
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (work.splits > 1) {
    store_partial<Config>(output, softmax, params, work.tile, warp, lane);
  } else {
    store_output<Config>(storage.query, output, softmax, params, work.tile, warp, lane);
  }
}

}  // namespace attn::sm80

namespace attn {

template <class Config>
struct AttentionUniversal<Config>::SharedStorage : sm80::PrefillStorage<Config> {};

}  // namespace attn
