// SPDX-License-Identifier: Apache-2.0
// One attention over all GPUs of a machine: the keys of each sequence are spread over them, key t
// on rank t % ranks, and NCCL brings the parts together between the kernel and the merge. A thread
// is a rank. Checked against the formula in double: 32 query and 8 KV heads of 128, a prompt of 100
// tokens and one new token after 700.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "attn/attention.h"

namespace {

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kLinear>;

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr double kScale = 0.08838834764831845;  // 1 / sqrt(kHeadDim)

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

void check(ncclResult_t result) {
  if (result != ncclSuccess) {
    throw std::runtime_error(std::string("NCCL: ") + ncclGetErrorString(result));
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
  check(cudaMalloc(&address, std::max<std::size_t>(count, 1) * sizeof(T)));
  return Array<T>(static_cast<T*>(address));
}

template <class T>
Array<T> upload(const std::vector<T>& values) {
  Array<T> array = allocate<T>(values.size());
  check(cudaMemcpy(array.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return array;
}

std::vector<half> random_values(std::size_t count, unsigned seed) {
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

// The keys of one rank, back to back, and where those of each sequence begin.
struct Shard {
  std::vector<half> k;
  std::vector<half> v;
  std::vector<int> cu_rows{0};
};

Shard shard_of(const Problem& problem, int rank, int ranks) {
  constexpr int kRow = kKvHeads * kHeadDim;
  Shard shard;
  for (std::size_t b = 0; b + 1 < problem.cu_k_len.size(); ++b) {
    const int begin = problem.cu_k_len[b];
    for (int key = begin + rank; key < problem.cu_k_len[b + 1]; key += ranks) {
      const auto row = std::ptrdiff_t{key} * kRow;
      shard.k.insert(shard.k.end(), problem.k.begin() + row, problem.k.begin() + row + kRow);
      shard.v.insert(shard.v.end(), problem.v.begin() + row, problem.v.begin() + row + kRow);
    }
    shard.cu_rows.push_back(static_cast<int>(shard.k.size()) / kRow);
  }
  return shard;
}

// What cp_fn is given: an all-gather in place, on a stream of its own, between two events.
struct Gather {
  ncclComm_t communicator = nullptr;
  cudaStream_t compute = nullptr;
  cudaStream_t exchange = nullptr;
  cudaEvent_t before = nullptr;
  cudaEvent_t after = nullptr;
  float* own = nullptr;    // this rank's part
  std::size_t floats = 0;  // from a rank's part to the next
  int rank = 0;

  void run() const {
    check(cudaEventRecord(before, compute));
    check(cudaStreamWaitEvent(exchange, before, 0));
    check(ncclAllGather(own, own - rank * floats, floats, ncclFloat, communicator, exchange));
    check(cudaEventRecord(after, exchange));
    check(cudaStreamWaitEvent(compute, after, 0));
  }
};

// cp_fn is called by C++ code, so that it may throw: the call then ends with the exception.
void gather(void* context) { static_cast<const Gather*>(context)->run(); }

std::vector<half> run_rank(const Problem& problem, ncclComm_t communicator, int rank, int ranks) {
  check(cudaSetDevice(rank));
  const Shard shard = shard_of(problem, rank, ranks);
  const Array<half> q = upload(problem.q);
  const Array<half> k = upload(shard.k);
  const Array<half> v = upload(shard.v);
  const Array<half> out = allocate<half>(problem.q.size());
  const Array<int> cu_q_len = upload(problem.cu_q_len);
  const Array<int> cu_k_len = upload(problem.cu_k_len);
  const Array<int> cu_rows = upload(shard.cu_rows);

  Gather exchange;
  exchange.communicator = communicator;
  exchange.rank = rank;
  check(cudaStreamCreateWithFlags(&exchange.compute, cudaStreamNonBlocking));
  check(cudaStreamCreateWithFlags(&exchange.exchange, cudaStreamNonBlocking));
  check(cudaEventCreateWithFlags(&exchange.before, cudaEventDisableTiming));
  check(cudaEventCreateWithFlags(&exchange.after, cudaEventDisableTiming));

  // 1. The call, as on one GPU: lengths are those of whole sequences, K and V this rank's.
  attn::AttentionParams<half> params;
  params.out = out.get();
  params.q = q.get();
  params.stride = kHeads * kHeadDim;
  params.cu_q_len = cu_q_len.get();
  params.cu_k_len = cu_k_len.get();
  params.cache = attn::CacheType::kLinear;
  params.linear_iter_params.k = k.get();
  params.linear_iter_params.v = v.get();
  params.linear_iter_params.k_token_stride = kKvHeads * kHeadDim;
  params.linear_iter_params.k_head_stride = kHeadDim;
  params.linear_iter_params.v_token_stride = kKvHeads * kHeadDim;
  params.linear_iter_params.v_head_stride = kHeadDim;
  params.linear_iter_params.token_count = shard.cu_rows.back();
  params.linear_iter_params.cu_rows = cu_rows.get();
  params.token_num = problem.cu_q_len.back();
  params.batch_size = 2;
  params.max_q_len = 100;
  params.max_k_len = 701;
  params.num_heads = kHeads;
  params.num_kv_heads = kKvHeads;
  params.size_per_head = kHeadDim;
  params.inv_sqrt_dh = static_cast<float>(kScale);
  params.stream = exchange.compute;

  // 2. How it is spread, and the workspace that takes the parts of all ranks.
  params.cp_rank = rank;
  params.cp_size = ranks;
  params.cp_form = attn::CpForm::kComplete;
  params.cp_fn = gather;
  params.cp_fn_ctx = &exchange;
  const attn::Plan plan = attn::planAttention<Config::Kernel>(params);
  const Array<char> workspace = allocate<char>(attn::workspace_size(plan));
  attn::set_workspace(params, plan, workspace.get(), attn::workspace_size(plan));
  exchange.own = params.cp_O;  // O, and (max, sum) behind it
  exchange.floats = static_cast<std::size_t>(params.cp_stride);
  if (ranks == 1) {
    params.cp_fn = nullptr;  // nobody to gather from
  }
  attn::invokeAttention<Config::Kernel>(params);

  check(cudaStreamSynchronize(exchange.compute));
  std::vector<half> result(problem.q.size());
  check(cudaMemcpy(result.data(), out.get(), result.size() * sizeof(half), cudaMemcpyDeviceToHost));
  return result;
}

// softmax(q . K^T * scale) V of one row, over the keys first .. last.
std::vector<double> attend(const Problem& problem, const half* q, int head, int first, int last) {
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

double max_error(const Problem& problem, const std::vector<half>& out) {
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

void run(int ranks) {
  const Problem problem;
  std::vector<ncclComm_t> communicators(ranks);
  check(ncclCommInitAll(communicators.data(), ranks, nullptr));
  std::vector<std::vector<half>> results(ranks);
  std::vector<std::exception_ptr> errors(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        results[rank] = run_rank(problem, communicators[rank], rank, ranks);
      } catch (...) {
        errors[rank] = std::current_exception();
        for (ncclComm_t communicator : communicators) {
          ncclCommAbort(communicator);  // so that no other rank waits for this one
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (int rank = 0; rank < ranks; ++rank) {
    if (errors[rank]) {
      std::rethrow_exception(errors[rank]);
    }
    std::cout << "rank " << rank << " of " << ranks << ": largest error "
              << max_error(problem, results[rank]) << '\n';
    ncclCommDestroy(communicators[rank]);
  }
}

}  // namespace

// attn_nccl_example [ranks]    all GPUs, if no number is given
int main(int count, char** words) {
  try {
    int devices = 0;
    check(cudaGetDeviceCount(&devices));
    run(count > 1 ? std::min(std::stoi(words[1]), devices) : devices);
    return 0;
  } catch (const attn::Error& error) {
    std::cerr << "attention: " << error.what() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  return 1;
}
