// SPDX-License-Identifier: Apache-2.0
// How long the host is busy with invokeAttention, and with launching an empty kernel that takes the
// same parameters. Prints both in microseconds.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <vector>

#include "attn/attention.h"

namespace {

constexpr int kHeads = 16;
constexpr int kHeadDim = 128;
constexpr int kCalls = 200;  // fits into the launch queue
constexpr int kBursts = 25;
constexpr int kSettling = 5;  // bursts that are not counted

template <class Params>
__global__ void nothing(const __grid_constant__ Params) {}

template <class T>
T* device_array(std::size_t count) {
  void* address = nullptr;
  if (cudaMalloc(&address, count * sizeof(T)) != cudaSuccess) {
    throw std::runtime_error("cudaMalloc failed");
  }
  cudaMemset(address, 0, count * sizeof(T));
  return static_cast<T*>(address);
}

// The median over bursts that begin with an idle device.
template <class Call>
double microseconds(Call call) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> samples;
  for (int burst = 0; burst < kBursts; ++burst) {
    cudaDeviceSynchronize();
    const auto begin = Clock::now();
    for (int i = 0; i < kCalls; ++i) {
      call();
    }
    const std::chrono::duration<double, std::micro> passed = Clock::now() - begin;
    samples.push_back(passed.count() / kCalls);
  }
  cudaDeviceSynchronize();
  std::sort(samples.begin() + kSettling, samples.end());
  return samples[(kSettling + kBursts) / 2];
}

// One sequence of one token, all heads with K and V of their own.
template <class T>
attn::AttentionParams<T> one_token() {
  const std::vector<int> ends{0, 1};
  int* const lengths = device_array<int>(2);
  cudaMemcpy(lengths, ends.data(), sizeof(int) * 2, cudaMemcpyHostToDevice);
  attn::AttentionParams<T> params;
  params.out = device_array<T>(kHeads * kHeadDim);
  params.q = device_array<T>(kHeads * kHeadDim);
  params.stride = kHeads * kHeadDim;
  params.cu_q_len = lengths;
  params.cu_k_len = lengths;
  params.linear_iter_params.k = device_array<T>(kHeads * kHeadDim);
  params.linear_iter_params.v = device_array<T>(kHeads * kHeadDim);
  params.linear_iter_params.k_token_stride = kHeads * kHeadDim;
  params.linear_iter_params.v_token_stride = kHeads * kHeadDim;
  params.linear_iter_params.k_head_stride = kHeadDim;
  params.linear_iter_params.v_head_stride = kHeadDim;
  params.linear_iter_params.token_count = 1;
  params.cache = attn::CacheType::kLinear;
  params.token_num = 1;
  params.batch_size = 1;
  params.max_q_len = 1;
  params.max_k_len = 1;
  params.num_heads = kHeads;
  params.num_kv_heads = kHeads;
  params.size_per_head = kHeadDim;
  params.inv_sqrt_dh = 0.08838834764831845f;  // 1 / sqrt(kHeadDim)
  params.counters = device_array<int>(1);
  return params;
}

template <class Kernel, class T>
int measure() {
  try {
    const attn::AttentionParams<T> params = one_token<T>();
    const double call = microseconds([&] { attn::invokeAttention<Kernel>(params); });
    const double launch = microseconds([&] { nothing<<<1, 128>>>(params); });
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
      throw std::runtime_error(cudaGetErrorString(error));
    }
    std::cout << call << ' ' << launch << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

}  // namespace
