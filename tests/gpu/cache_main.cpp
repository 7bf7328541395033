// SPDX-License-Identifier: Apache-2.0
// A C++ program that fills caches of every element type through writers, lets decode calls append
// to them, and reads them by prefill. Prints what differs between appending and writing first, and
// otherwise nothing. Memory that no row has been written to is left as it was allocated, so that
// initcheck tells who reads it.

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "attn/attention.h"

namespace {

// New tokens and lengths with them: a prefix that ends within a tile, a long one, none, and no new
// token.
const std::vector<int> kNew{3, 1, 2, 0};
const std::vector<int> kLengths{74, 300, 2, 9};
constexpr int kKvHeads = 2;
constexpr int kHeads = 8;
constexpr int kBlockLen = 16;
constexpr int kMaxBlocks = 19;  // of a sequence
constexpr int kPairBytes = 4;

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

// Device memory that lives as long as the program's call of one kind of cache.
class Memory {
 public:
  ~Memory() {
    for (void* address : addresses_) {
      cudaFree(address);
    }
  }

  void* allocate(std::size_t bytes) {
    void* address = nullptr;
    check(cudaMalloc(&address, bytes));
    addresses_.push_back(address);
    return address;
  }

  template <class T>
  T* upload(const std::vector<T>& values) {
    auto* const address = static_cast<T*>(allocate(values.size() * sizeof(T)));
    check(cudaMemcpy(address, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return address;
  }

 private:
  std::vector<void*> addresses_;
};

std::vector<int> sums(const std::vector<int>& counts) {
  std::vector<int> result{0};
  for (int count : counts) {
    result.push_back(result.back() + count);
  }
  return result;
}

// Numbers between -2 and 2 that follow no simple pattern.
template <class T>
std::vector<T> numbers(std::size_t count, unsigned seed) {
  std::vector<T> values(count);
  for (T& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = T(static_cast<float>(seed >> 8) / (1 << 22) - 2.0f);
  }
  return values;
}

// The kernels of a cache.
template <class T_, class Tkv_, int HeadDim, attn::CacheType Cache>
struct Kind {
  using T = T_;
  using Tkv = Tkv_;
  static constexpr int kHeadDim = HeadDim;
  static constexpr attn::CacheType kCache = Cache;
  static constexpr int kRowBytes = attn::KvTraits<T, Tkv>::template kRowBytes<HeadDim>;
  using Write = attn::WriteConfig<attn::arch::Sm80, T, HeadDim, Cache, Tkv>;
  using Decode = attn::DecodingConfig<attn::arch::Sm80, T, HeadDim, Cache, Tkv>;
  using Prefill =
      attn::AttentionConfig<attn::arch::Sm80, T, HeadDim, Cache, attn::Mask::kCausal, Tkv>;
};

int blocks() { return kMaxBlocks * static_cast<int>(kLengths.size()); }

template <class Kind>
void add_cache(Memory& memory, attn::LinearIteratorParams& linear) {
  const std::int64_t rows = sums(kLengths).back();
  linear.k = memory.allocate(rows * kKvHeads * Kind::kRowBytes);
  linear.v = memory.allocate(rows * kKvHeads * Kind::kRowBytes);
  linear.k_pairs = memory.allocate(rows * kKvHeads * kPairBytes);
  linear.v_pairs = memory.allocate(rows * kKvHeads * kPairBytes);
  linear.k_token_stride = linear.v_token_stride = kKvHeads * Kind::kHeadDim;
  linear.k_head_stride = linear.v_head_stride = Kind::kHeadDim;
  linear.k_pair_token_stride = linear.v_pair_token_stride = kKvHeads * 2;
  linear.k_pair_head_stride = linear.v_pair_head_stride = 2;
  linear.token_count = rows;
  linear.cu_rows = memory.upload(sums(kLengths));
}

template <class Kind>
void add_cache(Memory& memory, attn::BlockIteratorParams& block) {
  const std::int64_t bytes =
      std::int64_t{2} * kKvHeads * kBlockLen * (Kind::kRowBytes + kPairBytes);
  const auto base = reinterpret_cast<std::int64_t>(memory.allocate(blocks() * bytes));
  std::vector<std::int64_t> pointers;
  for (int i = 0; i < blocks(); ++i) {
    pointers.push_back(base + (blocks() - 1 - i) * bytes);
  }
  block.block_ptrs = memory.upload(pointers);
  block.cu_block_nums = memory.upload(sums(std::vector<int>(kLengths.size(), kMaxBlocks)));
  block.block_len = kBlockLen;
}

template <class Kind>
void add_cache(Memory& memory, attn::PagedIteratorParams& paged) {
  const std::int64_t rows = std::int64_t{blocks()} * kBlockLen * kKvHeads;
  paged.k = memory.allocate(rows * Kind::kRowBytes);
  paged.v = memory.allocate(rows * Kind::kRowBytes);
  paged.k_pairs = memory.allocate(rows * kPairBytes);
  paged.v_pairs = memory.allocate(rows * kPairBytes);
  paged.k_block_stride = paged.v_block_stride = kBlockLen * kKvHeads * Kind::kHeadDim;
  paged.k_token_stride = paged.v_token_stride = Kind::kHeadDim;
  paged.k_head_stride = paged.v_head_stride = kBlockLen * Kind::kHeadDim;
  paged.k_pair_block_stride = paged.v_pair_block_stride = kBlockLen * kKvHeads * 2;
  paged.k_pair_token_stride = paged.v_pair_token_stride = 2;
  paged.k_pair_head_stride = paged.v_pair_head_stride = kBlockLen * 2;
  std::vector<int> table;
  for (int i = 0; i < blocks(); ++i) {
    table.push_back(blocks() - 1 - i);
  }
  paged.block_table = memory.upload(table);
  paged.max_blocks = kMaxBlocks;
  paged.block_count = blocks();
  paged.block_len = kBlockLen;
}

template <class Kind>
attn::AttentionParams<typename Kind::T> params_of(Memory& memory) {
  using T = typename Kind::T;
  attn::AttentionParams<T> params;
  params.cache = Kind::kCache;
  params.kv_type = attn::KvTraits<T, typename Kind::Tkv>::kType;
  params.batch_size = static_cast<int>(kLengths.size());
  params.max_k_len = 300;
  params.num_heads = kHeads;
  params.num_kv_heads = kKvHeads;
  params.size_per_head = Kind::kHeadDim;
  params.inv_sqrt_dh = 1.0f / std::sqrt(static_cast<float>(Kind::kHeadDim));
  params.k_stride = params.v_stride = kKvHeads * Kind::kHeadDim;
  params.stride = kHeads * Kind::kHeadDim;
  if constexpr (Kind::kCache == attn::CacheType::kLinear) {
    add_cache<Kind>(memory, params.linear_iter_params);
  } else if constexpr (Kind::kCache == attn::CacheType::kBlock) {
    add_cache<Kind>(memory, params.block_iter_params);
  } else {
    add_cache<Kind>(memory, params.paged_iter_params);
  }
  return params;
}

// Sequences of so many new tokens, at these lengths with them.
template <class T>
void set_lengths(Memory& memory,
                 attn::AttentionParams<T>& params,
                 const std::vector<int>& tokens,
                 const std::vector<int>& lengths) {
  params.cu_q_len = memory.upload(sums(tokens));
  params.cu_k_len = memory.upload(sums(lengths));
  params.token_num = sums(tokens).back();
  params.max_q_len = 0;
  for (int count : tokens) {
    params.max_q_len = count > params.max_q_len ? count : params.max_q_len;
  }
}

// The tokens before the new ones go through a writer.
template <class Kind>
void write_prefixes(Memory& memory, attn::AttentionParams<typename Kind::T> params) {
  using T = typename Kind::T;
  std::vector<int> prefixes = kLengths;
  for (std::size_t i = 0; i < prefixes.size(); ++i) {
    prefixes[i] -= kNew[i];
  }
  set_lengths(memory, params, prefixes, prefixes);
  const std::size_t count = static_cast<std::size_t>(params.token_num) * params.k_stride;
  params.k = memory.upload(numbers<T>(count, 1));
  params.v = memory.upload(numbers<T>(count, 2));
  attn::invokeWrite<typename Kind::Write::Kernel>(params);
}

template <class T>
std::vector<char> download(const T* address, std::size_t bytes) {
  std::vector<char> found(bytes);
  check(cudaMemcpy(found.data(), address, bytes, cudaMemcpyDeviceToHost));
  return found;
}

// What a decode call puts out, in splits or not.
template <class Kind>
std::vector<char> decoded(Memory& memory,
                          attn::AttentionParams<typename Kind::T> params,
                          bool splits) {
  using T = typename Kind::T;
  using Kernel = typename Kind::Decode::Kernel;
  const std::size_t count = static_cast<std::size_t>(params.token_num) * params.stride;
  params.out = static_cast<T*>(memory.allocate(count * sizeof(T)));
  params.max_split_k = splits ? 0 : 1;
  const attn::Plan plan = attn::planDecoding<Kernel>(params);
  if (attn::workspace_size(plan) > 0) {
    params.counters = memory.upload(std::vector<int>(plan.counter_cnt, 0));
    attn::set_workspace(params, plan, memory.allocate(attn::workspace_size(plan)));
  }
  attn::invokeDecoding<Kernel>(params);
  check(cudaDeviceSynchronize());
  return download(params.out, count * sizeof(T));
}

template <class Kind>
void run(const std::string& name) {
  using T = typename Kind::T;
  Memory memory;
  // One cache that decode appends to, and one that a writer does.
  attn::AttentionParams<T> appended = params_of<Kind>(memory);
  attn::AttentionParams<T> written = params_of<Kind>(memory);
  write_prefixes<Kind>(memory, appended);
  write_prefixes<Kind>(memory, written);
  for (attn::AttentionParams<T>* params : {&appended, &written}) {
    set_lengths(memory, *params, kNew, kLengths);
    const std::size_t rows = params->token_num;
    params->q = memory.upload(numbers<T>(rows * params->stride, 3));
    params->k = memory.upload(numbers<T>(rows * params->k_stride, 4));
    params->v = memory.upload(numbers<T>(rows * params->v_stride, 5));
  }
  attn::invokeWrite<typename Kind::Write::Kernel>(written);
  written.k = written.v = nullptr;
  for (bool splits : {true, false}) {
    const std::vector<char> ours = decoded<Kind>(memory, appended, splits);
    appended.k = appended.v = nullptr;  // the rows are there now
    if (ours != decoded<Kind>(memory, written, splits)) {
      std::cout << name << (splits ? ", split" : "") << ": appending gives another output\n";
    }
  }
  const std::size_t count = static_cast<std::size_t>(appended.token_num) * appended.stride;
  appended.out = static_cast<T*>(memory.allocate(count * sizeof(T)));
  attn::invokeAttention<typename Kind::Prefill::Kernel>(appended);
  check(cudaDeviceSynchronize());
}

}  // namespace

int main() try {
  using attn::CacheType;
  run<Kind<__nv_bfloat16, __nv_bfloat16, 128, CacheType::kPaged>>("bf16 paged");
  run<Kind<__nv_bfloat16, attn::Int4, 128, CacheType::kPaged>>("int4 paged");
  run<Kind<half, attn::Int8, 64, CacheType::kBlock>>("int8 block");
  run<Kind<__nv_bfloat16, attn::E4m3, 128, CacheType::kLinear>>("e4m3 linear");
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
