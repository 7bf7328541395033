// SPDX-License-Identifier: Apache-2.0
// The splits of a query tile, where the CTAs that compute them are a cluster: each leaves what it
// has in its shared memory, and each merges some of the columns. Then nothing goes through the
// workspace, and no reduction follows.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm90/barriers.cuh"
#include "attn/sm90/cluster.cuh"
#include "attn/sm90/output.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/softmax.cuh"

namespace attn::sm90 {

// What a split leaves in place of its keys, each thread for the threads of the same number: groups
// of eight columns of its two rows, and in place of its values the references and sums of the rows.
template <class Traits>
struct SplitPart {
  static constexpr int kGroups = Traits::kOutputColumns / 8;
  using Columns = float4[kGroups][128];  // first row: x, y; second: z, w
  using Rows = float4[128];              // references, sums
};

// One consumer's side of the exchange. Each CTA computes one tile: nobody loads K or V any more.
template <class Traits, bool kMerges = Traits::kMergesSplits>
class SplitExchange {
  using T = typename Traits::T;
  using Part = SplitPart<Traits>;

 public:
  static constexpr int kMostSplits = Traits::kMergedSplits;

  __device__ __forceinline__ SplitExchange(SharedStorage<Traits>& storage,
                                           const Arguments<T>& arguments)
      : storage_(storage), arguments_(arguments) {
    static_assert(sizeof(typename Part::Columns) <= sizeof(storage.k),
                  "the slots of K hold the output of a tile");
    static_assert(sizeof(typename Part::Rows) <= sizeof(storage.v),
                  "the slots of V hold references and sums of its rows");
    static_assert(Traits::kConsumers == 1, "one warpgroup has the rows of a tile");
  }

  __device__ __forceinline__ static bool in_cluster() { return cluster_size() > 1; }

  // Merges the tile, of which this CTA has one of `splits` splits. By the whole warpgroup, whose
  // sums are complete.
  template <class Softmax, int kOutput>
  __device__ __forceinline__ void merge(const Softmax& softmax,
                                        const float (&output)[kOutput],
                                        const OutputRows& rows,
                                        int splits,
                                        int barrier,
                                        WarpgroupThread thread) {
    named_barrier_sync(barrier, 128);  // no product of any warp reads K or V any more
    leave(softmax, output, recomputed(thread.index));
    arrive_at_cluster();
    wait_for_cluster();  // the parts of all splits are complete
    float2 weights[kMostSplits];
    const float2 inverse = weigh(weights, rows, splits, thread);
    const int first = rows.split * Part::kGroups / splits;
    const int end = (rows.split + 1) * Part::kGroups / splits;
#pragma unroll 2
    for (int group = first; group < end; ++group) {
      const float4 merged = merged_columns(weights, group, splits, recomputed(thread.index));
      store(merged, inverse, group, rows, thread.lane());
    }
    arrive_at_cluster_unseen();  // what was read has been used: it has arrived
    wait_for_cluster();          // others have read this CTA's part: it may end
  }

 private:
  template <class Softmax, int kOutput>
  __device__ __forceinline__ void leave(const Softmax& softmax,
                                        const float (&output)[kOutput],
                                        uint32_t thread) const {
    auto& columns = *reinterpret_cast<typename Part::Columns*>(&storage_.k);
    auto& rows = *reinterpret_cast<typename Part::Rows*>(&storage_.v);
#pragma unroll
    for (int i = 0; i < kOutput; i += 4) {
      columns[i / 4][thread] = {output[i], output[i + 1], output[i + 2], output[i + 3]};
    }
    const float2 first = softmax.max_and_sum(0);
    const float2 second = softmax.max_and_sum(1);
    rows[thread] = {first.x, second.x, first.y, second.y};
  }

  // Of the two rows of a thread:
  //   M = max_s m_s        w_s = 2^(m_s - M)        L = sum_s w_s l_s
  // Returns 1 / L, 0 for a row that has seen nothing, and the first split writes its lse.
  __device__ __forceinline__ float2 weigh(float2 (&weights)[kMostSplits],
                                          const OutputRows& rows,
                                          int splits,
                                          WarpgroupThread thread) const {
    const uint32_t own = shared_address(&storage_.v) + recomputed(thread.index) * sizeof(float4);
    float4 parts[kMostSplits];
    float2 top = {-kInfinity, -kInfinity};
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      parts[s] = {-kInfinity, -kInfinity, 0.0f, 0.0f};
      if (s < splits) {
        parts[s] = load_of_cta(own, s);
      }
      top = {fmaxf(top.x, parts[s].x), fmaxf(top.y, parts[s].y)};
    }
    const float2 reference = {top.x == -kInfinity ? 0.0f : top.x,
                              top.y == -kInfinity ? 0.0f : top.y};
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      weights[s] = {exp2f(parts[s].x - reference.x), exp2f(parts[s].y - reference.y)};
      sum.x += weights[s].x * parts[s].z;
      sum.y += weights[s].y * parts[s].w;
    }
    if (rows.split == 0) {
      store_lse(reference, sum, rows, thread.lane());
    }
    return {sum.x > 0.0f ? 1.0f / sum.x : 0.0f, sum.y > 0.0f ? 1.0f / sum.y : 0.0f};
  }

  // O = sum_s w_s O_s
  __device__ __forceinline__ float4 merged_columns(const float2 (&weights)[kMostSplits],
                                                   int group,
                                                   int splits,
                                                   uint32_t thread) const {
    const uint32_t own = shared_address(&storage_.k) + (group * 128 + thread) * sizeof(float4);
    float4 parts[kMostSplits];
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      parts[s] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (s < splits) {
        parts[s] = load_of_cta(own, s);
      }
    }
    float4 merged = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      merged.x += weights[s].x * parts[s].x;
      merged.y += weights[s].x * parts[s].y;
      merged.z += weights[s].y * parts[s].z;
      merged.w += weights[s].y * parts[s].w;
    }
    return merged;
  }

  __device__ __forceinline__ void store(const float4& merged,
                                        const float2& inverse,
                                        int group,
                                        const OutputRows& rows,
                                        int lane) const {
    const int column = group * 8 + lane % 4 * 2;
    if (column >= Traits::kHeadDimV) {
      return;
    }
    const PackedRows packed = packed_rows(arguments_);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      if (row < rows.count && packed.has_head(row)) {
        // out [token_num, num_heads, head_dim_v]
        const int64_t token = rows.token + packed.token(row);
        const int64_t out_row = token * arguments_.params.num_heads + rows.head + packed.head(row);
        T* const out = arguments_.params.out + out_row * Traits::kHeadDimV + column;
        *reinterpret_cast<uint32_t*>(out) =
            h == 0 ? pack(merged.x * inverse.x, merged.y * inverse.x, T{})
                   : pack(merged.z * inverse.y, merged.w * inverse.y, T{});
      }
    }
  }

  __device__ __forceinline__ void store_lse(const float2& reference,
                                            const float2& sum,
                                            const OutputRows& rows,
                                            int lane) const {
    const AttentionParams<T>& params = arguments_.params;
    const PackedRows packed = packed_rows(arguments_);
    if (params.lse == nullptr || lane % 4 != 0) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      if (row < rows.count && packed.has_head(row)) {
        const float of_row = h == 0 ? sum.x : sum.y;
        const float of_reference = h == 0 ? reference.x : reference.y;
        // lse [num_heads, token_num]
        const int64_t head = rows.head + packed.head(row);
        params.lse[head * params.token_num + rows.token + packed.token(row)] =
            of_row > 0.0f ? (of_reference + log2f(of_row)) * kLn2 : -kInfinity;
      }
    }
  }

  SharedStorage<Traits>& storage_;
  const Arguments<T>& arguments_;
};

// Other kernels leave splits to the reduction.
template <class Traits>
class SplitExchange<Traits, false> {
 public:
  template <class Storage, class Arguments>
  __device__ __forceinline__ SplitExchange(const Storage&, const Arguments&) {}
  __device__ __forceinline__ static constexpr bool in_cluster() { return false; }
  template <class... Part>
  __device__ __forceinline__ void merge(const Part&...) {}
};

}  // namespace attn::sm90
