// SPDX-License-Identifier: Apache-2.0
// Softmax over keys that arrive block by block, on the accumulators of a warpgroup.
//
// A thread holds two rows (half h is row lane / 4 + 8 * h of its warp) and, of each, every fourth
// pair of columns. Per row:
//   reference   p = 2^(score * scale - reference), in log2 units of the scaled score
//   limit       what exceeds it has the reference renewed: in place a score, else what a block adds
//               to the sum; -inf: nothing seen yet; +inf: there is no such row
//   sum         of p, over this thread's columns only until finish()
//
// A row's reference may lag behind its true maximum by kLag powers of two: the quotient output /
// sum is the same, and 2^8 stays exact enough in f16 and bf16. So in the steady state there is no
// reduction at all: each thread compares what it has with the limit, and the warp votes. Where p is
// taken beside the scores, no maximum is needed either: no p is larger than their sum.
#pragma once

#include "attn/arithmetic.cuh"
#include "attn/sm90/softmax_form.h"
#include "attn/types.h"

namespace attn::sm90 {

constexpr float kLag = 8.0f;

template <class T, int kScores, SoftmaxForm kForm>
class OnlineSoftmax {
 public:
  using Scores = float[kScores];                // accumulators of Q.K
  using Probabilities = uint32_t[kScores / 2];  // the same, packed: the A operand of P.V

  __device__ __forceinline__ explicit OnlineSoftmax(float softmax_scale)
      : scale_(softmax_scale * kLog2E) {}

  // Of the tile that begins.
  __device__ __forceinline__ void set_scale(float softmax_scale) {
    scale_ = softmax_scale * kLog2E;
  }

  // The first block of a row, which sets the reference:  p = 2^(scores * scale - max), sum = sum p.
  // A row that does not exist never renews anything: the bits of a row must not depend on what lies
  // behind the last.
  __device__ __forceinline__ void first(const Scores& scores,
                                        Probabilities& p,
                                        bool first_exists,
                                        bool second_exists) {
    float largest[2];
    block_max(scores, largest);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      set_reference(h, row_max(largest[h]) * scale_);
      sum_[h] = 0.0f;
    }
    limit_[0] = first_exists ? limit_[0] : kInfinity;
    limit_[1] = second_exists ? limit_[1] : kInfinity;
    exponentials(scores, p, sum_);
    renewed_ = false;
  }

  // A later block, in place: scores become p. For the kernel that packs them when P.V has left its
  // operand.
  __device__ __forceinline__ void next_in_place(Scores& scores) {
    float largest[2];
    block_max(scores, largest);
    renewed_ = any_exceeds(largest);
    if (renewed_) {
      renew_references(largest);
    }
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const int h = i / 2 % 2;
      scores[i] = exp2_approximate(fmaf(scores[i], scale_, -reference_[h]));
      scores[i + 1] = exp2_approximate(fmaf(scores[i + 1], scale_, -reference_[h]));
      sum_[h] += scores[i] + scores[i + 1];
    }
  }

  // A later block, exponentials first: in the rare case that their sum exceeds a limit they are
  // taken again.
  __device__ __forceinline__ void next_optimistic(const Scores& scores, Probabilities& p) {
    float added[2] = {0.0f, 0.0f};
    exponentials(scores, p, added);
    renewed_ = any_exceeds(added);
    if (renewed_) {
      float largest[2];
      block_max(scores, largest);
      renew_references(largest);
      added[0] = added[1] = 0.0f;
      exponentials(scores, p, added);
    }
    sum_[0] += added[0];
    sum_[1] += added[1];
  }

  // output *= 2^(old reference - reference), if the last block renewed them.
  template <int kOutput>
  __device__ __forceinline__ void rescale(float (&output)[kOutput]) const {
    if (!renewed_) {
      return;
    }
#pragma unroll
    for (int i = 0; i < kOutput; ++i) {
      output[i] *= factor_[i / 2 % 2];
    }
  }

  // Completes the sums. Afterwards inverse() and log_sum_exp() are those of the whole rows.
  __device__ __forceinline__ void finish() {
    sum_[0] = row_sum(sum_[0]);
    sum_[1] = row_sum(sum_[1]);
  }

  // What this thread's rows have of some of their keys.
  struct Part {
    float reference[2];  // -inf: nothing seen
    float sum[2];
  };

  __device__ __forceinline__ Part part() const {
    return {{seen_reference(0), seen_reference(1)}, {sum_[0], sum_[1]}};
  }

  // Adds what another part of the keys gives:
  //   reference' = max(reference, part)    sum' = sum own + part's sum other
  // where own = 2^(reference - reference') and other = 2^(part - reference'), as for the output.
  __device__ __forceinline__ void add(const Part& part, float (&own)[2], float (&other)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float mine = seen_reference(h);
      const float max = fmaxf(mine, part.reference[h]);
      reference_[h] = max == -kInfinity ? 0.0f : max;
      own[h] = exp2_approximate(mine - reference_[h]);
      other[h] = exp2_approximate(part.reference[h] - reference_[h]);
      sum_[h] = sum_[h] * own[h] + part.sum[h] * other[h];
      limit_[h] = max;  // a sign of having seen something, and no limit any more
    }
  }

  // 1 / sum; 0 for a row that has seen nothing, whose output is then 0.
  __device__ __forceinline__ float inverse(int h) const {
    return sum_[h] > 0.0f ? reciprocal_approximate(sum_[h]) : 0.0f;
  }

  // Natural log of the sum of exponentials of the scaled scores; -inf for a row that has seen
  // nothing.
  __device__ __forceinline__ float log_sum_exp(int h) const {
    return sum_[h] == 0.0f ? -kInfinity : reference_[h] * kLn2 + __logf(sum_[h]);
  }

  // What a split leaves for the reduction.
  __device__ __forceinline__ float2 max_and_sum(int h) const {
    return {sum_[h] == 0.0f ? -kInfinity : reference_[h], sum_[h]};
  }

 private:
  __device__ __forceinline__ static void block_max(const Scores& scores, float (&largest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = fmaxf(scores[2 * h], scores[2 * h + 1]);
#pragma unroll
      for (int i = 2 * h + 4; i < kScores; i += 4) {
        largest[h] = fmaxf(largest[h], fmaxf(scores[i], scores[i + 1]));
      }
    }
  }

  __device__ __forceinline__ bool any_exceeds(const float (&found)[2]) const {
    return __any_sync(0xffffffffu, found[0] > limit_[0] || found[1] > limit_[1]);
  }

  // p = 2^(scores * scale - reference), sum += p.
  __device__ __forceinline__ void exponentials(const Scores& scores,
                                               Probabilities& p,
                                               float (&sum)[2]) const {
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const int h = i / 2 % 2;
      const float x = exp2_approximate(fmaf(scores[i], scale_, -reference_[h]));
      const float y = exp2_approximate(fmaf(scores[i + 1], scale_, -reference_[h]));
      sum[h] += x + y;
      p[i / 2] = pack(x, y, T{});
    }
  }

  // The reference of a row; -inf before it has seen a key.
  __device__ __forceinline__ float seen_reference(int h) const {
    return limit_[h] == -kInfinity ? -kInfinity : reference_[h];
  }

  // A row that has seen nothing has only scores of -inf: its reference is 0, so that 2^(-inf - 0) =
  // 0.
  __device__ __forceinline__ void set_reference(int h, float max) {
    reference_[h] = max == -kInfinity ? 0.0f : max;
    if constexpr (kForm == SoftmaxForm::kInPlace) {
      limit_[h] = __fdividef(max + kLag, scale_);
    } else {
      limit_[h] = max == -kInfinity ? -kInfinity : kLargestSum;
    }
  }

  // reference' = max(reference, largest * scale);  sum *= 2^(reference - reference')
  __device__ __forceinline__ void renew_references(const float (&largest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float block = row_max(largest[h]) * scale_;
      const bool exists = limit_[h] != kInfinity;
      const float old = seen_reference(h);
      set_reference(h, fmaxf(old, block));
      limit_[h] = exists ? limit_[h] : kInfinity;
      factor_[h] = exp2_approximate(old - reference_[h]);
      sum_[h] *= factor_[h];
    }
  }

  static constexpr float kLargestSum = 256.0f;  // 2^kLag

  float scale_;  // softmax scale * log2(e), above 0
  float reference_[2];
  float limit_[2];
  float sum_[2];
  float factor_[2];  // of the last renewal
  bool renewed_ = false;
};

}  // namespace attn::sm90
