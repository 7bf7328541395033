// SPDX-License-Identifier: Apache-2.0
// Parts of rows, added up by a warp.
#pragma once

#include "attn/sm80/decode_parts.cuh"

namespace attn::sm80 {

// Where the parts of a row lie: evenly but for the first.
struct PartRow {
  int first;
  int origin;  // where the first one would lie among the others; where it is alone, `first`
  int step;

  __device__ __forceinline__ int operator[](int i) const {
    return i == 0 ? first : origin + i * step;
  }
};

// What a warp adds up at a time: rows that have as many parts each.
//   M = max_j m_j        O = sum_j 2^(m_j - M) O_j        l = sum_j 2^(m_j - M) l_j
// The order of the parts is fixed, so the same parts give the same bits. A row has kPartsOfRow
// lanes, one for the (m, l) of each of so many parts at a time.
template <class Config>
class PartSums {
  using Traits = DecodeTraits<Config>;
  using Row = MergedRow<Config>;
  using Vector = typename Row::Vector;
  // Loads of 16 bytes that a lane has under way; fewer where more CTAs share the registers, and
  // fewer yet beside the unpacking of int4, where eight would spill. A power of two of parts, so
  // that the rounds fill up the lanes that hold their weights.
  static constexpr int kSteps = Row::kSteps == 3 ? 4 : Row::kSteps;
  static constexpr int kCtas = TileOf<Config>::kCtasPerSm;
  static constexpr bool kIsInt4 = Traits::Kv::kBits == 4;
  static constexpr int kLoads = (kCtas > 3 && kIsInt4 ? 4 : kCtas > 2 ? 8 : 16) / kSteps;

 public:
  // With many rows, rounds of loads would pass one after the other for each.
  static constexpr int kTogether = Traits::kRows >= 4 * Traits::kWarps ? 4 : 1;
  static constexpr int kAtOnce = kLoads / kTogether;
  static constexpr int kFewNear = 8;
  static constexpr int kFew =
      Traits::kHasSpareRegisters && kAtOnce > 4 ? 4 : kAtOnce;  // parts that need fewer loads

  Row rows[kTogether];

  template <int kLoaded, class Place>
  __device__ __forceinline__ void add_up(const PartStore& parts, Place place, int count, int lane) {
    PartRow places[kTogether];
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      places[r] = place(r);
      rows[r].clear();
    }
    float weight = 0.0f;
#pragma unroll 1
    for (int next = 0; next < count; next += kLoaded) {
      const int chunk = next / kPartsOfRow * kPartsOfRow;
      float2 max_sum{-kInfinity, 0.0f};
      if (next == chunk) {
        max_sum = load_max_sum(parts, places, chunk, count, lane);
      }
      // Without predicates, which would put the loads one behind the other; and before the weights
      // are known, so that both latencies pass together.
      Vector values[kTogether][kLoaded][Row::kSteps];
      const bool is_even = places[0].step == kEvenStep && next + kLoaded <= count;
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
        load_part(values[r][0], address(parts, places[r][next]), lane);
        if (is_even) {
          const char* const from = address(parts, places[r].origin + next * kEvenStep);
#pragma unroll
          for (int i = 1; i < kLoaded; ++i) {
            load_part(values[r][i], from + i * kEvenStep * kPartBytes, lane);
          }
        } else {
          const char* const origin = address(parts, places[r].origin);
          const unsigned step = places[r].step * kPartBytes;
#pragma unroll
          for (int i = 1; i < kLoaded; ++i) {
            const unsigned at = min(next + i, count - 1);
            load_part(values[r][i], origin + static_cast<uint64_t>(at) * step, lane);
          }
        }
      }
      if (next == chunk) {
        const bool exists = chunk + lane % kPartsOfRow < count;
        weight = weigh(exists ? max_sum : float2{-kInfinity, 0.0f}, lane);
      }
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
#pragma unroll
        for (int i = 0; i < kLoaded; ++i) {
          const int of = r * kPartsOfRow + next - chunk + i;
          const float w = __shfl_sync(kWarp, weight, of);
#pragma unroll
          for (int step = 0; step < Row::kSteps; ++step) {
            rows[r].add(step, values[r][i][step], w);
          }
        }
      }
    }
  }

  // The parts of one row, which lie in shared memory: at most kFewNear. The bits are those of
  // add_up.
  template <class Parts>
  __device__ __forceinline__ void add_up_near(const Parts& parts, int lane) {
    static_assert(kTogether == 1, "the lanes hold the weights of one row");
    rows[0].clear();
    const float2 own = lane < parts.count ? parts.max_sum[lane] : float2{-kInfinity, 0.0f};
    const float weight = weigh(own, lane);
#pragma unroll
    for (int i = 0; i < kFewNear; ++i) {
      const float w = __shfl_sync(kWarp, weight, i);
#pragma unroll
      for (int step = 0; step < Row::kSteps; ++step) {
        rows[0].add(step, parts.vector(min(i, parts.count - 1), step, lane), w);
      }
    }
  }

 private:
  // Between neighbours: their addresses then differ by what the compiler knows.
  static constexpr int kEvenStep = 2;
  static constexpr int kPartsOfRow = 32 / kTogether;
  static_assert(kPartsOfRow % kAtOnce == 0 && kPartsOfRow % kFew == 0,
                "a round of parts has its weights in one set of lanes");

  // Of this lane's part among those from `chunk` on. Past the end the last one is read again.
  __device__ __forceinline__ static float2 load_max_sum(
      const PartStore& parts, const PartRow (&places)[kTogether], int chunk, int count, int lane) {
    const int at = min(chunk + lane % kPartsOfRow, count - 1);
    int own = places[0][at];
#pragma unroll
    for (int r = 1; r < kTogether; ++r) {
      const int theirs = places[r][at];  // of any lane: else a place is looked up in local memory
      own = lane / kPartsOfRow == r ? theirs : own;
    }
    return __ldcg(parts.max_sum + own);
  }

  // The greatest of all lanes: floats are ordered like integers, but for the negative ones, whose
  // order is turned round.
  __device__ __forceinline__ static float warp_max(float value) {
    const auto turned = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
    return __int_as_float(turned(__reduce_max_sync(kWarp, turned(__float_as_int(value)))));
  }

  // Takes kPartsOfRow more parts of each row into its max and sum; returns the weight of this
  // lane's.
  __device__ __forceinline__ float weigh(float2 max_sum, int lane) {
    float max = max_sum.x;
    if constexpr (kPartsOfRow == 32) {
      max = warp_max(max);
    } else {
#pragma unroll
      for (int step = kPartsOfRow / 2; step > 0; step /= 2) {
        max = fmaxf(max, __shfl_xor_sync(kWarp, max, step));
      }
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      const float renewed = fmaxf(rows[r].max, __shfl_sync(kWarp, max, r * kPartsOfRow));
      rows[r].scale(exp2_approximate(rows[r].max - (renewed == -kInfinity ? 0.0f : renewed)));
      rows[r].max = renewed;
      if (lane / kPartsOfRow == r) {
        max = renewed;
      }
    }
    const float weight = exp2_approximate(max_sum.x - (max == -kInfinity ? 0.0f : max));
    float sum = weight * max_sum.y;
#pragma unroll
    for (int step = kPartsOfRow / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kWarp, sum, step);
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      rows[r].sum += __shfl_sync(kWarp, sum, r * kPartsOfRow);
    }
    return weight;
  }

  static constexpr unsigned kPartBytes = Config::kHeadDim * sizeof(float);

  __device__ __forceinline__ static const char* address(const PartStore& parts, int part) {
    return reinterpret_cast<const char*>(parts.output) + static_cast<int64_t>(part) * kPartBytes;
  }

  __device__ __forceinline__ static void load_part(Vector (&values)[Row::kSteps],
                                                   const char* part,
                                                   int lane) {
    const float* const from = reinterpret_cast<const float*>(part);
#pragma unroll
    for (int step = 0; step < Row::kSteps; ++step) {
      // A lane without vectors reads that of lane 0.
      const int place = Row::has(step, lane) ? Row::place(step, lane) : 0;
      if constexpr (Row::kVector == 4) {
        const float4 value = __ldcg(reinterpret_cast<const float4*>(from + place));
        values[step] = {{value.x, value.y, value.z, value.w}};
      } else {
        const float2 value = __ldcg(reinterpret_cast<const float2*>(from + place));
        values[step] = {{value.x, value.y}};
      }
    }
  }
};

}  // namespace attn::sm80
