// SPDX-License-Identifier: Apache-2.0
// One attention over all GPUs of a machine: the keys of each sequence are spread over them, key t
// on rank t % ranks, and NCCL brings the parts together between the kernel and the merge. A thread
// is a rank. The heads are computed in two rounds, so that what the first one leaves is gathered
// while the second one runs. Checked against the formula in double: 32 query and 8 KV heads of 128,
// a prompt of 100 tokens and one new token after 700.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "attn/attention.h"
#include "problem.h"

namespace {

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kLinear>;

constexpr int kRounds = 2;

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

// Streams and events live until the process ends.
cudaStream_t make_stream(int priority) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority));
  return stream;
}

cudaEvent_t make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

// What cp_fn is given: an all-gather in place, on a stream of its own, between two events.
struct Gather {
  ncclComm_t communicator = nullptr;
  int rank = 0;
  cudaStream_t compute = nullptr;
  cudaStream_t exchange = nullptr;
  cudaEvent_t before = nullptr;  // the kernel has ended
  cudaEvent_t after = nullptr;
  attn::Parts parts{};  // of all ranks

  void run() const {
    check(cudaEventRecord(before, compute));
    check(cudaStreamWaitEvent(exchange, before, 0));
    const float* const own = parts.first + rank * parts.floats;
    check(ncclAllGather(own, parts.first, parts.floats, ncclFloat, communicator, exchange));
    check(cudaEventRecord(after, exchange));
    check(cudaStreamWaitEvent(compute, after, 0));
  }
};

// cp_fn is called by C++ code, so that it may throw: the call then ends with the exception.
void gather(void* context) { static_cast<const Gather*>(context)->run(); }

// One round: a call of some of the heads, on a stream of its own.
struct Round {
  attn::AttentionParams<half> params;
  Array<char> workspace;
  Gather gather;
};

// The heads of round `index` of a call of all heads. What they leave is merged into their place
// between the heads of other rounds.
attn::AttentionParams<half> heads_of_round(attn::AttentionParams<half> params, int index) {
  const int first = index * (kHeads / kRounds);
  const int first_kv = index * (kKvHeads / kRounds);
  auto& cache = params.linear_iter_params;
  params.q += first * kHeadDim;
  params.out += first * kHeadDim;
  params.cp_out_stride = kHeads * kHeadDim;
  cache.k = static_cast<const half*>(cache.k) + first_kv * cache.k_head_stride;
  cache.v = static_cast<const half*>(cache.v) + first_kv * cache.v_head_stride;
  params.num_heads = kHeads / kRounds;
  params.num_kv_heads = kKvHeads / kRounds;
  return params;
}

// Everything that a round needs but for the events of others: its stream and its workspace, which
// takes the parts of all ranks.
void prepare(Round& round, ncclComm_t communicator, cudaStream_t exchange) {
  attn::AttentionParams<half>& params = round.params;
  params.stream = make_stream(0);
  round.gather.communicator = communicator;
  round.gather.rank = params.cp_rank;
  round.gather.compute = params.stream;
  round.gather.exchange = exchange;
  round.gather.before = make_event();
  round.gather.after = make_event();
  params.cp_fn = gather;
  params.cp_fn_ctx = &round.gather;
  const attn::Plan plan = attn::planAttention<Config::Kernel>(params);
  round.workspace = allocate<char>(attn::workspace_size(plan));
  attn::set_workspace(params, plan, round.workspace.get(), attn::workspace_size(plan));
  round.gather.parts = attn::parts_of(params);
}

// The call, as on one GPU: lengths are those of whole sequences, K and V this rank's.
attn::AttentionParams<half> call_of(const Problem& problem, int rank, int ranks) {
  attn::AttentionParams<half> params;
  params.stride = kHeads * kHeadDim;
  params.cache = attn::CacheType::kLinear;
  params.linear_iter_params.k_token_stride = kKvHeads * kHeadDim;
  params.linear_iter_params.k_head_stride = kHeadDim;
  params.linear_iter_params.v_token_stride = kKvHeads * kHeadDim;
  params.linear_iter_params.v_head_stride = kHeadDim;
  params.token_num = problem.cu_q_len.back();
  params.batch_size = 2;
  params.max_q_len = 100;
  params.max_k_len = 701;
  params.num_heads = kHeads;
  params.num_kv_heads = kKvHeads;
  params.size_per_head = kHeadDim;
  params.inv_sqrt_dh = static_cast<float>(kScale);
  params.cp_rank = rank;
  params.cp_size = ranks;
  params.cp_form = attn::CpForm::kComplete;
  return params;
}

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
  attn::AttentionParams<half> params = call_of(problem, rank, ranks);
  params.q = q.get();
  params.out = out.get();
  params.cu_q_len = cu_q_len.get();
  params.cu_k_len = cu_k_len.get();
  params.linear_iter_params.k = k.get();
  params.linear_iter_params.v = v.get();
  params.linear_iter_params.token_count = shard.cu_rows.back();
  params.linear_iter_params.cu_rows = cu_rows.get();

  std::vector<Round> rounds(ranks > 1 ? kRounds : 1);  // alone, there is nothing to gather
  if (ranks == 1) {
    rounds[0].params = params;
    rounds[0].params.stream = make_stream(0);
    attn::invokeAttention<Config::Kernel>(rounds[0].params);
  } else {
    int least = 0;
    int highest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &highest));
    const cudaStream_t exchange = make_stream(highest);
    for (int i = 0; i < kRounds; ++i) {
      rounds[i].params = heads_of_round(params, i);
      prepare(rounds[i], communicator, exchange);
      if (i > 0) {  // behind the kernel before, and beside its gather
        check(cudaStreamWaitEvent(rounds[i].params.stream, rounds[i - 1].gather.before, 0));
      }
      attn::invokeAttention<Config::Kernel>(rounds[i].params);
    }
  }
  for (const Round& round : rounds) {
    check(cudaStreamSynchronize(round.params.stream));
  }
  std::vector<half> result(problem.q.size());
  check(cudaMemcpy(result.data(), out.get(), result.size() * sizeof(half), cudaMemcpyDeviceToHost));
  return result;
}

void run(int ranks) {
  const Problem problem;
  std::vector<ncclComm_t> communicators(ranks);
  check(ncclCommInitAll(communicators.data(), ranks, nullptr));
  std::vector<std::vector<half>> results(ranks);
  std::exception_ptr error;  // of the rank that failed first
  std::once_flag failed;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        results[rank] = run_rank(problem, communicators[rank], rank, ranks);
      } catch (...) {
        std::call_once(failed, [&] {
          error = std::current_exception();
          for (ncclComm_t communicator : communicators) {
            ncclCommAbort(communicator);  // so that no other rank waits for this one
          }
        });
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (error) {
    std::rethrow_exception(error);
  }
  for (int rank = 0; rank < ranks; ++rank) {
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
