// SPDX-License-Identifier: Apache-2.0
// A layer of an engine: prompts are written into an int8 paged cache and attended to, then decode
// steps append to the cache and read it, replayed from a CUDA graph while lengths grow. Two batches
// run on a stream each. The last step is checked against the formula in double, over what the cache
// holds: 32 query and 8 KV heads of 128, blocks of 64 tokens.

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "attn/attention.h"

namespace {

using Bf16 = __nv_bfloat16;
using Lengths = std::vector<int>;

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kBlockLen = 64;
constexpr int kMaxBlocks = 16;  // of a sequence
constexpr int kMostKeys = kMaxBlocks * kBlockLen;
constexpr int kSteps = 8;
const float kScale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

// ---- Device memory ------------------------------------------------------------------------------

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
void copy_to(T* device, const std::vector<T>& values) {
  check(cudaMemcpy(device, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
}

template <class T>
Array<T> upload(const std::vector<T>& values) {
  Array<T> array = allocate<T>(values.size());
  copy_to(array.get(), values);
  return array;
}

template <class T>
std::vector<T> download(const T* device, std::size_t count) {
  std::vector<T> values(count);
  check(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

// Stands in for the projections of a model: the q, k and v of some tokens.
Array<Bf16> random_rows(int tokens, int heads, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> values(std::size_t(tokens) * std::size_t(heads) * kHeadDim);
  std::generate(values.begin(), values.end(), [&] { return __float2bfloat16(normal(random)); });
  return upload(values);
}

// {3, 1}   ->   {0, 3, 4}
std::vector<int> cumulated(const Lengths& lengths) {
  std::vector<int> sums(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), sums.begin() + 1);
  return sums;
}

// ---- The cache ----------------------------------------------------------------------------------

// Pools of codes and of (scale, zero), K and V each [block, token, head, ...].
class Int8Cache {
 public:
  explicit Int8Cache(int blocks)
      : blocks_(blocks),
        k_(allocate<std::uint8_t>(rows() * kHeadDim)),
        v_(allocate<std::uint8_t>(rows() * kHeadDim)),
        k_pairs_(allocate<Bf16>(rows() * 2)),
        v_pairs_(allocate<Bf16>(rows() * 2)) {}

  attn::PagedIteratorParams params(const int* block_table) const {
    attn::PagedIteratorParams paged;
    paged.k = k_.get();
    paged.v = v_.get();
    paged.k_head_stride = paged.v_head_stride = kHeadDim;
    paged.k_token_stride = paged.v_token_stride = kKvHeads * kHeadDim;
    paged.k_block_stride = paged.v_block_stride = kBlockLen * kKvHeads * kHeadDim;
    paged.k_pairs = k_pairs_.get();
    paged.v_pairs = v_pairs_.get();
    paged.k_pair_head_stride = paged.v_pair_head_stride = 2;
    paged.k_pair_token_stride = paged.v_pair_token_stride = kKvHeads * 2;
    paged.k_pair_block_stride = paged.v_pair_block_stride = kBlockLen * kKvHeads * 2;
    paged.block_table = block_table;
    paged.max_blocks = kMaxBlocks;
    paged.block_count = blocks_;
    paged.block_len = kBlockLen;
    return paged;
  }

  // What the codes stand for, [block, token, head, head_dim].
  std::vector<double> keys() const { return values(k_.get(), k_pairs_.get()); }
  std::vector<double> values() const { return values(v_.get(), v_pairs_.get()); }

 private:
  std::size_t rows() const { return std::size_t(blocks_) * kBlockLen * kKvHeads; }

  std::vector<double> values(const std::uint8_t* codes, const Bf16* pairs) const {
    const std::vector<std::uint8_t> code = download(codes, rows() * kHeadDim);
    const std::vector<Bf16> pair = download(pairs, rows() * 2);
    std::vector<double> found(code.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      const std::size_t row = i / kHeadDim;
      // x = code * scale + zero
      found[i] = double(code[i]) * double(__bfloat162float(pair[2 * row])) +
                 double(__bfloat162float(pair[2 * row + 1]));
    }
    return found;
  }

  int blocks_;
  Array<std::uint8_t> k_;
  Array<std::uint8_t> v_;
  Array<Bf16> k_pairs_;
  Array<Bf16> v_pairs_;
};

// ---- A batch ------------------------------------------------------------------------------------

// Sequences that share a stream, with blocks of their own. Addresses stay the same from step to
// step, and so does everything on the host: a graph is captured once.
class Batch {
 public:
  Batch(Int8Cache& cache, const Lengths& prompts, int first_block, unsigned seed)
      : cache_(cache), lengths_(prompts), first_block_(first_block), seed_(seed) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    std::vector<int> table(prompts.size() * kMaxBlocks);
    std::iota(table.begin(), table.end(), first_block);
    block_table_ = upload(table);
    cu_k_len_ = allocate<int>(prompts.size() + 1);
    cu_step_ = upload(cumulated(Lengths(prompts.size(), 1)));
    q_ = random_rows(count(), kHeads, seed);
    k_ = random_rows(count(), kKvHeads, seed + 1);
    v_ = random_rows(count(), kKvHeads, seed + 2);
    out_ = allocate<Bf16>(std::size_t(count()) * kHeads * kHeadDim);
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch() {
    cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }

  int count() const { return static_cast<int>(lengths_.size()); }

  // The prompts' rows go into the cache, and attend to each other as they are, not quantised.
  void prefill() {
    const std::vector<int> cu_host = cumulated(lengths_);
    const int tokens = cu_host.back();
    const Array<Bf16> q = random_rows(tokens, kHeads, seed_ + 3);
    const Array<Bf16> k = random_rows(tokens, kKvHeads, seed_ + 4);
    const Array<Bf16> v = random_rows(tokens, kKvHeads, seed_ + 5);
    const Array<Bf16> out = allocate<Bf16>(std::size_t(tokens) * kHeads * kHeadDim);
    const Array<int> counter = upload(std::vector<int>{0});
    copy_to(cu_k_len_.get(), cu_host);

    attn::AttentionParams<Bf16> params = heads();
    params.cu_q_len = cu_k_len_.get();  // every token is new
    params.token_num = tokens;
    params.max_q_len = *std::max_element(lengths_.begin(), lengths_.end());
    params.k = k.get();
    params.v = v.get();
    attn::dispatchWriting(params);

    params.out = out.get();
    params.q = q.get();
    params.k = params.v = nullptr;  // written already
    params.kv_type = attn::KvType::kSame;
    params.cache = attn::CacheType::kLinear;
    params.linear_iter_params.k = k.get();
    params.linear_iter_params.v = v.get();
    params.linear_iter_params.k_head_stride = kHeadDim;
    params.linear_iter_params.v_head_stride = kHeadDim;
    params.linear_iter_params.k_token_stride = kKvHeads * kHeadDim;
    params.linear_iter_params.v_token_stride = kKvHeads * kHeadDim;
    params.linear_iter_params.token_count = tokens;
    params.counters = counter.get();  // for Hopper's kernels, where they are linked
    attn::dispatchAttention(params);
    check(cudaStreamSynchronize(stream_));
  }

  // A step appends a token to each sequence and attends to all of them, in one launch.
  void capture() {
    attn::AttentionParams<Bf16> params = heads();
    params.out = out_.get();
    params.q = q_.get();
    params.k = k_.get();
    params.v = v_.get();
    params.cu_q_len = cu_step_.get();
    params.token_num = count();
    params.max_q_len = 1;
    // Memory that the call shares its keys out with; it depends on no length or count of sequences.
    const attn::Plan plan = attn::plan(params, attn::Mode::kDecode);
    workspace_ = allocate<char>(attn::workspace_size(plan));
    counters_ = upload(std::vector<int>(std::size_t(plan.counter_cnt), 0));
    attn::set_workspace(params, plan, workspace_.get(), attn::workspace_size(plan));
    params.counters = counters_.get();

    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    attn::dispatchDecoding(params);
    check(cudaStreamEndCapture(stream_, &graph));
    check(cudaGraphInstantiate(&graph_, graph, 0));
    check(cudaGraphDestroy(graph));
  }

  // Every sequence is longer by a token: the graph reads its lengths from the device.
  void step() {
    for (int& length : lengths_) {
      ++length;
    }
    const std::vector<int> cu_host = cumulated(lengths_);
    check(cudaMemcpyAsync(cu_k_len_.get(),
                          cu_host.data(),
                          cu_host.size() * sizeof(int),
                          cudaMemcpyHostToDevice,
                          stream_));
    check(cudaGraphLaunch(graph_, stream_));
  }

  // The largest difference of the last step's output from the formula.
  double max_error() const {
    check(cudaStreamSynchronize(stream_));
    const std::size_t rows = std::size_t(count()) * kHeads;
    const std::vector<Bf16> q = download(q_.get(), rows * kHeadDim);
    const std::vector<Bf16> out = download(out_.get(), rows * kHeadDim);
    const std::vector<double> keys = cache_.keys();
    const std::vector<double> values = cache_.values();
    double worst = 0.0;
    for (std::size_t row = 0; row < rows; ++row) {
      const std::vector<double> exact = attend(&q[row * kHeadDim], keys, values, row);
      for (std::size_t i = 0; i < kHeadDim; ++i) {
        worst =
            std::max(worst, std::abs(double(__bfloat162float(out[row * kHeadDim + i])) - exact[i]));
      }
    }
    return worst;
  }

 private:
  // What every call has in common.
  attn::AttentionParams<Bf16> heads() const {
    attn::AttentionParams<Bf16> params;
    params.stride = kHeads * kHeadDim;
    params.k_stride = params.v_stride = kKvHeads * kHeadDim;
    params.cu_k_len = cu_k_len_.get();
    params.paged_iter_params = cache_.params(block_table_.get());
    params.cache = attn::CacheType::kPaged;
    params.kv_type = attn::KvType::kInt8;
    params.batch_size = count();
    params.max_k_len = kMostKeys;  // an upper bound, for every step
    params.num_heads = kHeads;
    params.num_kv_heads = kKvHeads;
    params.size_per_head = kHeadDim;
    params.inv_sqrt_dh = kScale;
    params.stream = stream_;
    return params;
  }

  // softmax(q . K^T * scale) V of a head of a sequence.
  std::vector<double> attend(const Bf16* q,
                             const std::vector<double>& keys,
                             const std::vector<double>& values,
                             std::size_t row) const {
    const std::size_t sequence = row / kHeads;
    const std::size_t kv_head = row % kHeads / (kHeads / kKvHeads);
    const std::size_t first_row =
        (std::size_t(first_block_) + sequence * kMaxBlocks) * kBlockLen * kKvHeads + kv_head;
    std::vector<double> out(kHeadDim);
    double sum = 0.0;
    for (std::size_t t = 0; t < std::size_t(lengths_[sequence]); ++t) {
      const std::size_t at = (first_row + t * kKvHeads) * kHeadDim;
      double score = 0.0;
      for (std::size_t i = 0; i < kHeadDim; ++i) {
        score += double(__bfloat162float(q[i])) * keys[at + i];
      }
      const double weight = std::exp(score * double(kScale));
      sum += weight;
      for (std::size_t i = 0; i < kHeadDim; ++i) {
        out[i] += weight * values[at + i];
      }
    }
    for (double& value : out) {
      value /= sum;
    }
    return out;
  }

  Int8Cache& cache_;
  Lengths lengths_;
  int first_block_;
  unsigned seed_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  Array<int> block_table_;
  Array<int> cu_k_len_;
  Array<int> cu_step_;
  Array<Bf16> q_;
  Array<Bf16> k_;
  Array<Bf16> v_;
  Array<Bf16> out_;
  Array<char> workspace_;
  Array<int> counters_;
};

void run() {
  attn::prepare(0);  // so that nothing is loaded while a graph is captured
  const Lengths first{100, 700};
  const Lengths second{1, 350, 65};
  Int8Cache cache(static_cast<int>(first.size() + second.size()) * kMaxBlocks);
  std::array<Batch, 2> batches{{{cache, first, 0, 1}, {cache, second, 2 * kMaxBlocks, 100}}};
  for (Batch& batch : batches) {
    batch.prefill();
    batch.capture();
  }
  for (int step = 0; step < kSteps; ++step) {
    for (Batch& batch : batches) {
      batch.step();
    }
  }
  for (const Batch& batch : batches) {
    std::cout << batch.count() << " sequences, " << kSteps << " steps: largest error "
              << batch.max_error() << '\n';
  }
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
