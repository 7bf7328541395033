// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a decode warp on its 16 tokens of a stage. Keys and values are the wide side of
// the products, rows of Q the narrow one:
//
//   S^T [tokens x rows] = K Q^T        O^T [columns x rows] += V^T P^T
//
// A lane with g = lane / 4, t = lane % 4 holds of S^T the tokens g and g + 8, and of both the rows
// 8n + 2t and 8n + 2t + 1 of each row tile n.
#pragma once

#include "attn/sm80/decode_codes.cuh"
#include "attn/sm80/decode_instructions.cuh"
#include "attn/sm80/decode_schedule.cuh"
#include "attn/sm80/softmax.cuh"

namespace attn::sm80 {

// --- Q ------------------------------------------------------------------------------------------

// Where a row lies in q.
template <class T>
__device__ __forceinline__ const T* query_row(const AttentionParams<T>& params,
                                              const RowPlace& row,
                                              int head_dim) {
  return params.q + row.token * params.stride + static_cast<int64_t>(row.head) * head_dim;
}

// The columns of step k that a lane with lane % 4 = t multiplies: elements u = 0 and 1 of half 0
// and of half 1. Where codes are packed, the order of columns is that in which words are expanded
// (attn/sm80/dequantise.cuh): lane t has 2 kPacked consecutive columns of each kPacked / 2 steps.
template <class Config>
__device__ __forceinline__ int query_column(int k, int half, int t, int u) {
  constexpr int kPacked = DecodeTraits<Config>::kPacked;
  if constexpr (kPacked == 1) {
    return k * 16 + half * 8 + 2 * t + u;
  } else {
    constexpr int kSteps = kPacked / 2;
    return k / kSteps * 8 * kPacked + t * 2 * kPacked + k % kSteps * 2 + half + u * kPacked;
  }
}

// The column of element c of fragment i of the output: a word of V has columns that lie side by
// side, each of which is a row of another fragment.
template <class Config>
__device__ __forceinline__ int output_column(int i, int c, int lane) {
  constexpr int kPacked = DecodeTraits<Config>::kPacked;
  return (i / kPacked * 16 + c / 2 * 8 + lane / 4) * kPacked + i % kPacked;
}

// Elements 0 and 1 of a half of step k, side by side.
template <class Config>
__device__ __forceinline__ uint32_t
query_pair(const typename Config::T* row, int k, int half, int t) {
  const auto* const first = row + query_column<Config>(k, half, t, 0);
  if constexpr (DecodeTraits<Config>::kPacked == 1) {
    return *reinterpret_cast<const uint32_t*>(first);
  } else {
    const auto* const bits = reinterpret_cast<const unsigned short*>(first);
    return bits[0] | static_cast<uint32_t>(bits[DecodeTraits<Config>::kPacked]) << 16;
  }
}

// Eight columns of a row in the order in which they are multiplied.
template <class Config>
__device__ __forceinline__ uint4 query_chunk(const typename Config::T* row, int chunk) {
  if constexpr (DecodeTraits<Config>::kPacked == 1) {
    return *reinterpret_cast<const uint4*>(row + chunk * 8);
  } else {
    const auto two = [&](int t) { return query_pair<Config>(row, chunk / 2, chunk % 2, t); };
    return {two(0), two(1), two(2), two(3)};
  }
}

// Fills the tile of Q; rows that do not exist become zero. Called by all warps.
template <class Config>
__device__ __forceinline__ void store_query(DecodeStorage<Config>& storage,
                                            const AttentionParams<typename Config::T>& params,
                                            const RowPlace* rows,
                                            int row_count) {
  using Traits = DecodeTraits<Config>;
  using Tile = typename Traits::QueryTileStorage;
  constexpr int kChunks = Traits::kHeadDim / 8;
  char* const base = reinterpret_cast<char*>(storage.query.data);
#pragma unroll 2
  for (int i = threadIdx.x; i < Traits::kRows * kChunks; i += Traits::kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    uint4 values{0, 0, 0, 0};
    if (row < row_count) {
      const auto* const from = query_row(params, rows[row], Traits::kHeadDim);
      values = query_chunk<Config>(from, chunk);
    }
    *reinterpret_cast<uint4*>(base + Tile::chunk_offset(row, chunk)) = values;
  }
}

// The narrow operand of S^T: for each step of 16 columns and each row tile, (k 2t, 2t + 1) and
// (k 2t + 8, 2t + 9) of row g.
template <class Config, bool kInRegisters = DecodeTraits<Config>::kQueryInRegisters>
class DecodeQuery;

template <class Config>
class DecodeQuery<Config, true> {
  using Traits = DecodeTraits<Config>;

 public:
  __device__ __forceinline__ void load(const DecodeStorage<Config>&,
                                       const AttentionParams<typename Config::T>& params,
                                       const RowPlace* rows,
                                       int row_count,
                                       int lane) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      const int row = n * 8 + lane / 4;
      const auto* const from = query_row(params, rows[row], Traits::kHeadDim);
      const bool exists = row < row_count;
#pragma unroll
      for (int k = 0; k < Traits::kDepthFragments; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          fragments_[k][n][half] = exists ? query_pair<Config>(from, k, half, lane % 4) : 0u;
        }
      }
    }
  }

  __device__ __forceinline__ void fragment(uint32_t (&b)[Traits::kRowTiles][2], int k) const {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      b[n][0] = fragments_[k][n][0];
      b[n][1] = fragments_[k][n][1];
    }
  }

 private:
  uint32_t fragments_[Traits::kDepthFragments][Traits::kRowTiles][2];
};

template <class Config>
class DecodeQuery<Config, false> {
  using Traits = DecodeTraits<Config>;
  using Tile = typename Traits::QueryTileStorage;

 public:
  __device__ __forceinline__ void load(const DecodeStorage<Config>& storage,
                                       const AttentionParams<typename Config::T>&,
                                       const RowPlace*,
                                       int,
                                       int lane) {
    address_ = FragmentAddress<Tile>::column_major(storage.query, lane);
  }

  __device__ __forceinline__ void fragment(uint32_t (&b)[Traits::kRowTiles][2], int k) const {
    static_assert(Traits::kRowTiles % 2 == 0, "ldmatrix reads two row tiles");
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; n += 2) {
      uint32_t pair[4];
      load_matrix_x4(pair, address_.at(n / 2, k));
      b[n][0] = pair[0];
      b[n][1] = pair[1];
      b[n + 1][0] = pair[2];
      b[n + 1][1] = pair[3];
    }
  }

 private:
  FragmentAddress<Tile> address_;
};

// --- scores -------------------------------------------------------------------------------------

// As many fragments of K or V are read ahead as registers allow. One of codes is several.
template <class Config>
inline constexpr int kFragmentsAhead = DecodeTraits<Config>::Kv::kIsQuantised      ? 4
                                       : DecodeTraits<Config>::kAccumulators <= 32 ? 8
                                       : DecodeTraits<Config>::kAccumulators <= 64 ? 4
                                                                                   : 1;

// The wide operands that `kMade` fragments of 16-bit rows make: of tokens and steps of Q, or of
// columns and tokens of V. Codes make several.
template <class Config>
inline constexpr int kMade = DecodeTraits<Config>::kPacked;

template <class Config>
__device__ __forceinline__ void expand_keys(uint32_t (&made)[kMade<Config>][4],
                                            const uint32_t (&loaded)[4]) {
  if constexpr (kMade<Config> == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      made[0][i] = loaded[i];
    }
  } else {
    // Words 0 and 1 are of the tokens g and g + 8, words 2 and 3 of their next 16 bytes.
    constexpr int kSteps = kMade<Config> / 2;  // that a word has columns for
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t pairs[kMade<Config>];
      Expander<typename Config::T, typename Config::Tkv>::expand(pairs, loaded[word]);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        made[word / 2 * kSteps + step][word % 2] = pairs[2 * step];
        made[word / 2 * kSteps + step][word % 2 + 2] = pairs[2 * step + 1];
      }
    }
  }
}

template <class Config>
__device__ __forceinline__ void expand_values(uint32_t (&made)[kMade<Config>][4],
                                              const uint32_t (&loaded)[4]) {
  if constexpr (kMade<Config> == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      made[0][i] = loaded[i];
    }
  } else {
    // A word has kPacked columns of the tokens 2t and 2t + 1.
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t pairs[kMade<Config>];
      Expander<typename Config::T, typename Config::Tkv>::expand(pairs, loaded[word]);
#pragma unroll
      for (int column = 0; column < kMade<Config>; ++column) {
        made[column][word] = pairs[column];
      }
    }
  }
}

template <class Config>
__device__ __forceinline__ void multiply_key_query(
    float (&scores)[DecodeTraits<Config>::kRowTiles][4],
    const Unit<Config>& unit,
    const DecodeQuery<Config>& query,
    int lane) {
  using Traits = DecodeTraits<Config>;
  using Address = FragmentAddress<typename Traits::PieceTile>;
  constexpr int kAhead = kFragmentsAhead<Config>;
  constexpr int kMakes = kMade<Config>;
  // With one row tile, two chains halve the latency of dependent products.
  constexpr int kChains = Traits::kRowTiles == 1 ? 2 : 1;
  float chains[kChains][Traits::kRowTiles][4] = {};
  const Address address = Address::row_major(unit.key, lane);
#pragma unroll
  for (int first = 0; first < Traits::kLoadedFragments; first += kAhead) {
    uint32_t loaded[kAhead][4];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        load_matrix_x4(loaded[i], address.at(0, first + i));
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        uint32_t a[kMakes][4];
        expand_keys<Config>(a, loaded[i]);
#pragma unroll
        for (int made = 0; made < kMakes; ++made) {
          const int k = (first + i) * kMakes + made;
          uint32_t b[Traits::kRowTiles][2];
          query.fragment(b, k);
#pragma unroll
          for (int n = 0; n < Traits::kRowTiles; ++n) {
            multiply_add(chains[k % kChains][n], a[made], b[n][0], b[n][1], typename Config::T{});
          }
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      scores[n][c] = kChains == 2 ? chains[0][n][c] + chains[kChains - 1][n][c] : chains[0][n][c];
    }
  }
}

// -inf where a row does not see a token.
template <class Config>
__device__ __forceinline__ void mask_scores(float (&scores)[DecodeTraits<Config>::kRowTiles][4],
                                            const RowPlace* rows,
                                            int first_token,
                                            int lane) {
#pragma unroll
  for (int n = 0; n < DecodeTraits<Config>::kRowTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const KeyRange seen = rows[n * 8 + lane % 4 * 2 + c % 2].seen;
      const int token = first_token + lane / 4 + c / 2 * 8;
      if (token < seen.begin || token >= seen.end) {
        scores[n][c] = -kInfinity;
      }
    }
  }
}

// --- softmax and output -------------------------------------------------------------------------

// What a warp has of its rows.
//   output     [columns x rows], unnormalised: relative to reference
//   reference  log2 units of the scaled score; -inf: nothing seen yet
//   sum        of p = 2^(score scale - reference), of this lane's tokens only until finish()
template <class Config>
struct RowState {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;

  float output[Traits::kDepthFragments][Traits::kRowTiles][4];
  float reference[Traits::kRowTiles][2];
  float sum[Traits::kRowTiles][2];
  ValueScales<Config> values;

  __device__ __forceinline__ void clear() {
    values.clear();
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < Traits::kDepthFragments; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          output[i][n][c] = 0.0f;
        }
      }
      reference[n][0] = reference[n][1] = -kInfinity;
      sum[n][0] = sum[n][1] = 0.0f;
    }
  }

  // Turns scores into probabilities in place and adds them up. The reference of a row may lag
  // behind its maximum by kLag, so that few stages need a rescaling of the output.
  __device__ __forceinline__ void update(float (&scores)[Traits::kRowTiles][4], float scale) {
    bool exceeded = false;
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        exceeded |= fmaxf(scores[n][c], scores[n][c + 2]) * scale > reference[n][c] + kLag;
      }
    }
    if (__any_sync(kWarp, exceeded)) {
      renew_reference(scores, scale);
    }
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        // A row that has seen nothing has only scores of -inf: 2^(-inf - 0) = 0.
        const float row = reference[n][c % 2];
        const float subtract = row == -kInfinity ? 0.0f : row;
        scores[n][c] = exp2_approximate(fmaf(scores[n][c], scale, -subtract));
        sum[n][c % 2] += scores[n][c];
      }
    }
  }

  // Turns probabilities into factors of the elements of V, in place.
  __device__ __forceinline__ void weigh(float (&p)[Traits::kRowTiles][4],
                                        const Unit<Config>& unit,
                                        int lane) {
    if constexpr (Traits::Kv::kHasPairs) {
      constexpr int kCentre = Expander<T, typename Config::Tkv>::kCentre;
      const auto first = ScaleZero<T>::template of<kCentre>(unit.value_pairs[lane / 4]);
      const auto second = ScaleZero<T>::template of<kCentre>(unit.value_pairs[lane / 4 + 8]);
      const float larger = fmaxf(first.scale, second.scale);
      if (__any_sync(kWarp, larger > values.unit * values.kUnitLag)) {
        renew_unit(larger);
      }
#pragma unroll
      for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const ScaleZero<T>& of_token = c < 2 ? first : second;
          values.zero_sum[n][c % 2] += p[n][c] * of_token.zero;
          p[n][c] *= of_token.scale * values.inverse;
        }
      }
    }
  }

  // Afterwards the rows are those of all the warp's tokens, in units of 1. `factor` is what an
  // element of V stands for where it is the same for all of them.
  __device__ __forceinline__ void finish(float factor) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sum[n][c] = added_up(sum[n][c]);
        if constexpr (Traits::Kv::kHasPairs) {
          scale_output(n, c, values.unit, added_up(values.zero_sum[n][c]));
        } else if constexpr (Traits::Kv::kIsQuantised) {
          scale_output(n, c, factor, 0.0f);
        }
      }
    }
  }

 private:
  // Over the lanes that have the same rows.
  __device__ __forceinline__ static float added_up(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      x += __shfl_xor_sync(kWarp, x, step);
    }
    return x;
  }

  __device__ __forceinline__ void scale_output(int n, int c, float factor, float summand) {
#pragma unroll
    for (int i = 0; i < Traits::kDepthFragments; ++i) {
      output[i][n][c] = fmaf(output[i][n][c], factor, summand);
      output[i][n][c + 2] = fmaf(output[i][n][c + 2], factor, summand);
    }
  }

  // unit' = the largest scale of the unit of tokens;  output *= unit / unit'
  __device__ __forceinline__ void renew_unit(float scale) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      scale = fmaxf(scale, __shfl_xor_sync(kWarp, scale, step));
    }
    const float inverse = __fdividef(1.0f, scale);  // 2^-126 or more
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
      scale_output(n, 0, values.unit * inverse, 0.0f);
      scale_output(n, 1, values.unit * inverse, 0.0f);
    }
    values.unit = scale;
    values.inverse = inverse;
  }

  // reference' = max(reference, largest scaled score);  sum, output *= 2^(reference - reference')
  __device__ __forceinline__ void renew_reference(const float (&scores)[Traits::kRowTiles][4],
                                                  float scale) {
#pragma unroll
    for (int n = 0; n < Traits::kRowTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float largest = fmaxf(scores[n][c], scores[n][c + 2]);
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, step));
        }
        const float renewed = fmaxf(reference[n][c], largest * scale);
        const float factor =
            exp2_approximate(reference[n][c] - (renewed == -kInfinity ? 0.0f : renewed));
        reference[n][c] = renewed;
        sum[n][c] *= factor;
        values.rescale(n, c, factor);
#pragma unroll
        for (int i = 0; i < Traits::kDepthFragments; ++i) {
          output[i][n][c] *= factor;
          output[i][n][c + 2] *= factor;
        }
      }
    }
  }
};

// Reads V while the softmax is under way, where registers allow.
template <class Config>
__device__ __forceinline__ void multiply_value_probability(
    RowState<Config>& state,
    const float (&probabilities)[DecodeTraits<Config>::kRowTiles][4],
    const Unit<Config>& unit,
    int lane) {
  using Traits = DecodeTraits<Config>;
  using T = typename Config::T;
  using Address = FragmentAddress<typename Traits::PieceTile>;
  constexpr int kAhead = kFragmentsAhead<Config>;
  constexpr int kMakes = kMade<Config>;
  uint32_t b[Traits::kRowTiles][2];
#pragma unroll
  for (int n = 0; n < Traits::kRowTiles; ++n) {
    const float (&p)[4] = probabilities[n];
    b[n][0] = transpose_matrix(pack(p[0], p[1], T{}));
    b[n][1] = transpose_matrix(pack(p[2], p[3], T{}));
  }
  const Address address = Address::column_major(unit.value, lane);
#pragma unroll
  for (int first = 0; first < Traits::kLoadedFragments; first += kAhead) {
    uint32_t loaded[kAhead][4];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        load_matrix_x4_transposed(loaded[i], address.at(0, first + i));
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < Traits::kLoadedFragments) {
        uint32_t a[kMakes][4];
        expand_values<Config>(a, loaded[i]);
#pragma unroll
        for (int made = 0; made < kMakes; ++made) {
#pragma unroll
          for (int n = 0; n < Traits::kRowTiles; ++n) {
            multiply_add(
                state.output[(first + i) * kMakes + made][n], a[made], b[n][0], b[n][1], T{});
          }
        }
      }
    }
  }
}

}  // namespace attn::sm80
