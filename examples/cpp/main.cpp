// SPDX-License-Identifier: Apache-2.0
// Attention over TurboMind's block cache, checked against the formula in double: 32 query and 8 KV
// heads of 128, a prompt of 100 tokens and one new token after 700.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "attn/attention.h"

namespace {

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kBlockLen = 64;
constexpr double kScale = 0.08838834764831845;  // 1 / sqrt(kHeadDim)

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

// Device memory that frees itself.
struct Free {
  void operator()(void* address) const { cudaFree(address); }
};

template <class T>
using Array = std::unique_ptr<T[], Free>;

template <class T>
Array<T> allocate(std::size_t count) {
  void* address = nullptr;
  check(cudaMalloc(&address, count * sizeof(T)));
  return Array<T>(static_cast<T*>(address));
}

template <class T>
Array<T> upload(const std::vector<T>& values) {
  Array<T> array = allocate<T>(values.size());
  check(cudaMemcpy(array.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return array;
}

std::vector<half> random_values(std::size_t count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<half> values(count);
  std::generate(values.begin(), values.end(), [&] { return __float2half(normal(random)); });
  return values;
}

// The sequences of the batch, and where the cache keeps them. A block holds
// [kv_head][K, V][token][head_dim]; block b of the cache is the b-th one here.
struct Batch {
  std::vector<int> cu_q_len{0, 100, 101};
  std::vector<int> cu_k_len{0, 100, 801};
  std::vector<int> cu_block_nums{0, 2, 13};

  int count() const { return static_cast<int>(cu_q_len.size()) - 1; }

  // Index of an element of K (part 0) or V (part 1) in the cache.
  static std::size_t index(int block, int head, int part, int token, int column) {
    return (((std::size_t(block) * kKvHeads + head) * 2 + part) * kBlockLen + token) * kHeadDim +
           column;
  }
};

// softmax(q . K^T * scale) V of one row, over the keys 0 .. last of a sequence.
std::vector<double> attend(
    const half* q, const std::vector<half>& cache, int first_block, int head, int last) {
  std::vector<double> out(kHeadDim);
  double sum = 0.0;
  for (int key = 0; key <= last; ++key) {
    const int block = first_block + key / kBlockLen;
    const int token = key % kBlockLen;
    double score = 0.0;
    for (int i = 0; i < kHeadDim; ++i) {
      score += double(__half2float(q[i])) *
               double(__half2float(cache[Batch::index(block, head, 0, token, i)]));
    }
    const double weight = std::exp(score * kScale);
    sum += weight;
    for (int i = 0; i < kHeadDim; ++i) {
      out[i] += weight * double(__half2float(cache[Batch::index(block, head, 1, token, i)]));
    }
  }
  for (double& value : out) {
    value /= sum;
  }
  return out;
}

double max_error(const Batch& batch,
                 const std::vector<half>& q,
                 const std::vector<half>& cache,
                 const std::vector<half>& out) {
  double worst = 0.0;
  for (int b = 0; b < batch.count(); ++b) {
    const int q_len = batch.cu_q_len[b + 1] - batch.cu_q_len[b];
    const int k_len = batch.cu_k_len[b + 1] - batch.cu_k_len[b];
    for (int i = 0; i < q_len; ++i) {
      for (int head = 0; head < kHeads; ++head) {
        const std::size_t row = (std::size_t(batch.cu_q_len[b] + i) * kHeads + head) * kHeadDim;
        const int kv_head = head / (kHeads / kKvHeads);
        const std::vector<double> expected =
            attend(&q[row], cache, batch.cu_block_nums[b], kv_head, i + k_len - q_len);
        for (int column = 0; column < kHeadDim; ++column) {
          worst =
              std::max(worst, std::abs(double(__half2float(out[row + column])) - expected[column]));
        }
      }
    }
  }
  return worst;
}

void run() {
  // Loads what is linked; a machine without a GPU is told so here.
  for (const attn::KernelInfo& info : attn::prepare(0)) {
    std::cout << info.name << ": " << info.registers << " registers, " << info.ctas_per_sm
              << " CTAs of " << info.warps << " warps per SM\n";
  }

  const Batch batch;
  const int tokens = batch.cu_q_len.back();
  const int blocks = batch.cu_block_nums.back();
  const std::vector<half> q = random_values(std::size_t(tokens) * kHeads * kHeadDim);
  const std::vector<half> cache = random_values(Batch::index(blocks, 0, 0, 0, 0));
  const Array<half> device_q = upload(q);
  const Array<half> device_cache = upload(cache);
  const Array<half> device_out = allocate<half>(q.size());
  const Array<int> cu_q_len = upload(batch.cu_q_len);
  const Array<int> cu_k_len = upload(batch.cu_k_len);
  const Array<int> cu_block_nums = upload(batch.cu_block_nums);
  std::vector<std::int64_t> addresses;
  for (int block = 0; block < blocks; ++block) {
    addresses.push_back(
        reinterpret_cast<std::int64_t>(device_cache.get() + Batch::index(block, 0, 0, 0, 0)));
  }
  const Array<std::int64_t> block_ptrs = upload(addresses);
  const Array<int> counters = upload(std::vector<int>{0});

  attn::AttentionParams<half> params;
  params.out = device_out.get();
  params.q = device_q.get();
  params.stride = kHeads * kHeadDim;
  params.cu_q_len = cu_q_len.get();
  params.cu_k_len = cu_k_len.get();
  params.block_iter_params.block_ptrs = block_ptrs.get();
  params.block_iter_params.cu_block_nums = cu_block_nums.get();
  params.block_iter_params.block_len = kBlockLen;
  params.token_num = tokens;
  params.batch_size = batch.count();
  params.max_q_len = 100;  // upper bounds
  params.max_k_len = 1024;
  params.num_heads = kHeads;
  params.num_kv_heads = kKvHeads;
  params.size_per_head = kHeadDim;
  params.inv_sqrt_dh = static_cast<float>(kScale);
  params.counters = counters.get();  // for Hopper kernels, where they are linked

  // The kernel by name, without a workspace: keys are not split.
  attn::invokeAttention<Config::Kernel>(params);
  std::vector<half> out(q.size());
  check(
      cudaMemcpy(out.data(), device_out.get(), out.size() * sizeof(half), cudaMemcpyDeviceToHost));
  std::cout << "invokeAttention: largest error " << max_error(batch, q, cache, out) << '\n';

  // The kernel that fits the params and the device, its keys split four ways.
  params.split_cnt = 4;
  const attn::Plan plan = attn::plan(params);
  const Array<char> workspace = allocate<char>(attn::workspace_size(plan));
  attn::set_workspace(params, plan, workspace.get(), attn::workspace_size(plan));
  attn::dispatchAttention(params);
  check(
      cudaMemcpy(out.data(), device_out.get(), out.size() * sizeof(half), cudaMemcpyDeviceToHost));
  std::cout << "dispatchAttention, " << plan.split_cnt << " splits: largest error "
            << max_error(batch, q, cache, out) << '\n';
}

}  // namespace

int main() {
  try {
    run();
    return 0;
  } catch (const attn::Error& error) {
    std::cerr << "attention: " << error.what() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  return 1;
}
