// SPDX-License-Identifier: Apache-2.0
// What a call costs the host beyond the launch itself: rounds of empty kernels with arguments of
// the same size, of invokeAttention, and of dispatchAttention. Prints, for each kernel, the
// microseconds of the three: medians over the rounds.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "attn/attention.h"

namespace {

using Clock = std::chrono::steady_clock;
using Params = attn::AttentionParams<__nv_bfloat16>;

constexpr int kCallsPerRound = 200;  // fewer than a stream takes before a launch waits
constexpr int kRounds = 31;
constexpr int kHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kKeys = 64;

struct SameSize {
  char bytes[sizeof(Params) + sizeof(attn::TilePlan)];
};

__global__ void empty(SameSize) {}

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

template <class T>
T* allocate(std::size_t count) {  // for as long as the process
  void* address = nullptr;
  check(cudaMalloc(&address, count * sizeof(T)));
  check(cudaMemset(address, 0, count * sizeof(T)));
  return static_cast<T*>(address);
}

template <class Call>
double round_of(Call&& call) {
  check(cudaDeviceSynchronize());
  const auto started = Clock::now();
  for (int i = 0; i < kCallsPerRound; ++i) {
    call();
  }
  const std::chrono::duration<double, std::micro> took = Clock::now() - started;
  return took.count() / kCallsPerRound;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// One query of one sequence over a linear cache: the device is done before the host is.
Params small_call(cudaStream_t stream) {
  const int lengths[] = {0, 1, 0, kKeys};
  int* const cu = allocate<int>(4);
  check(cudaMemcpy(cu, lengths, sizeof(lengths), cudaMemcpyHostToDevice));
  Params params;
  params.out = allocate<__nv_bfloat16>(kHeads * kHeadDim);
  params.q = allocate<__nv_bfloat16>(kHeads * kHeadDim);
  params.stride = kHeads * kHeadDim;
  params.cu_q_len = cu;
  params.cu_k_len = cu + 2;
  params.cache = attn::CacheType::kLinear;
  attn::LinearIteratorParams& rows = params.linear_iter_params;
  rows.k = allocate<__nv_bfloat16>(kKeys * kHeads * kHeadDim);
  rows.v = allocate<__nv_bfloat16>(kKeys * kHeads * kHeadDim);
  rows.k_token_stride = rows.v_token_stride = kHeads * kHeadDim;
  rows.k_head_stride = rows.v_head_stride = kHeadDim;
  rows.token_count = kKeys;
  params.token_num = params.batch_size = params.max_q_len = 1;
  params.max_k_len = kKeys;
  params.num_heads = params.num_kv_heads = kHeads;
  params.size_per_head = kHeadDim;
  params.inv_sqrt_dh = 0.088f;
  params.counters = allocate<int>(1);
  params.stream = stream;
  return params;
}

template <class Arch>
void measure(const char* name, const Params& params) {
  using Config = attn::AttentionConfig<Arch, __nv_bfloat16, kHeadDim, attn::CacheType::kLinear>;
  std::vector<double> launch, invoke, dispatch;
  for (int round = 0; round < kRounds; ++round) {
    launch.push_back(round_of([&] { empty<<<kHeads, 128, 0, params.stream>>>(SameSize{}); }));
    invoke.push_back(round_of([&] { attn::invokeAttention<typename Config::Kernel>(params); }));
    dispatch.push_back(round_of([&] { attn::dispatchAttention(params); }));
  }
  check(cudaDeviceSynchronize());
  std::cout << name << ' ' << std::fixed << std::setprecision(2) << median(launch) << ' '
            << median(invoke) << ' ' << median(dispatch) << '\n';
}

void run() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  attn::prepare(0);
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0));
  const Params params = small_call(stream);
  measure<attn::arch::Sm80>("sm80", params);
  if (device.major == 9) {
    measure<attn::arch::Sm90>("sm90", params);
  }
}

}  // namespace

int main() {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  return 1;
}
