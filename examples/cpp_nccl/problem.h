// SPDX-License-Identifier: Apache-2.0
// The problem of the example, and the formula in double.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

inline constexpr int kHeads = 32;
inline constexpr int kKvHeads = 8;
inline constexpr int kHeadDim = 128;
inline constexpr double kScale = 0.08838834764831845;  // 1 / sqrt(kHeadDim)

inline std::vector<half> random_values(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<half> values(count);
  std::generate(values.begin(), values.end(), [&] { return __float2half(normal(random)); });
  return values;
}

// The same on every rank: lengths of whole sequences, q [tokens, heads, 128], and all keys.
struct Problem {
  std::vector<int> cu_q_len{0, 100, 101};
  std::vector<int> cu_k_len{0, 100, 801};
  std::vector<half> q = random_values(std::size_t{101} * kHeads * kHeadDim, 1);
  std::vector<half> k = random_values(std::size_t{801} * kKvHeads * kHeadDim, 2);
  std::vector<half> v = random_values(std::size_t{801} * kKvHeads * kHeadDim, 3);
};

// softmax(q . K^T * scale) V of one row, over the keys first .. last.
inline std::vector<double> attend(
    const Problem& problem, const half* q, int head, int first, int last) {
  std::vector<double> out(kHeadDim);
  double sum = 0.0;
  for (int key = first; key <= last; ++key) {
    const std::size_t row = (std::size_t(key) * kKvHeads + head) * kHeadDim;
    double score = 0.0;
    for (int i = 0; i < kHeadDim; ++i) {
      score += double(__half2float(q[i])) * double(__half2float(problem.k[row + i]));
    }
    const double weight = std::exp(score * kScale);
    sum += weight;
    for (int i = 0; i < kHeadDim; ++i) {
      out[i] += weight * double(__half2float(problem.v[row + i]));
    }
  }
  for (double& value : out) {
    value /= sum;
  }
  return out;
}

inline double max_error(const Problem& problem, const std::vector<half>& out) {
  double worst = 0.0;
  for (int b = 0; b < 2; ++b) {
    const int q_len = problem.cu_q_len[b + 1] - problem.cu_q_len[b];
    for (int i = 0; i < q_len; ++i) {
      for (int head = 0; head < kHeads; ++head) {
        const std::size_t row = (std::size_t(problem.cu_q_len[b] + i) * kHeads + head) * kHeadDim;
        const int last = problem.cu_k_len[b + 1] - q_len + i;
        const std::vector<double> expected =
            attend(problem, &problem.q[row], head / (kHeads / kKvHeads), problem.cu_k_len[b], last);
        for (int column = 0; column < kHeadDim; ++column) {
          worst =
              std::max(worst, std::abs(double(__half2float(out[row + column])) - expected[column]));
        }
      }
    }
  }
  return worst;
}
