// SPDX-License-Identifier: Apache-2.0
// A C++ program that runs the attention calls of some folders, or with --errors prints how bad
// parameters are refused. See cpp_program.py for the files of a folder.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "attn/attention.h"

namespace {

using PagedConfig = attn::AttentionConfig<attn::arch::Sm80,
                                          __nv_bfloat16,
                                          128,
                                          attn::CacheType::kPaged,
                                          attn::Mask::kCausal>;
using BlockConfig =
    attn::AttentionConfig<attn::arch::Sm80, half, 64, attn::CacheType::kBlock, attn::Mask::kCausal>;
using LinearConfig = attn::AttentionConfig<attn::arch::Sm80,
                                           __nv_bfloat16,
                                           192,
                                           attn::CacheType::kLinear,
                                           attn::Mask::kFull,
                                           __nv_bfloat16,
                                           128>;

using DecodePagedConfig =
    attn::DecodingConfig<attn::arch::Sm80, __nv_bfloat16, 128, attn::CacheType::kPaged>;
using DecodeBlockConfig =
    attn::DecodingConfig<attn::arch::Sm80, half, 64, attn::CacheType::kBlock>;

#ifdef WITH_SM90
using HopperPagedConfig = attn::AttentionConfig<attn::arch::Sm90,
                                                __nv_bfloat16,
                                                128,
                                                attn::CacheType::kPaged,
                                                attn::Mask::kCausal>;
using HopperLinearConfig =
    attn::AttentionConfig<attn::arch::Sm90, half, 64, attn::CacheType::kLinear, attn::Mask::kFull>;
using HopperSharedKeysConfig = attn::AttentionConfig<attn::arch::Sm90,
                                                     half,
                                                     64,
                                                     attn::CacheType::kLinear,
                                                     attn::Mask::kFull,
                                                     half,
                                                     64,
                                                     attn::Tile<64, 64, 2>>;
using HopperClustersConfig = attn::AttentionConfig<attn::arch::Sm90,
                                                   __nv_bfloat16,
                                                   128,
                                                   attn::CacheType::kPaged,
                                                   attn::Mask::kCausal,
                                                   __nv_bfloat16,
                                                   128,
                                                   attn::Tile<64, 128>>;
#endif

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

// The numbers and the arrays of a call. Arrays are uploaded when they are asked for.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    std::ifstream file(path + "/call.txt");
    std::string name, value;
    while (file >> name >> value) {
      words_[name] = value;
    }
  }

  ~Folder() {
    for (void* address : addresses_) {
      cudaFree(address);
    }
  }

  const std::string& word(const std::string& name) const { return words_.at(name); }

  std::int64_t number(const std::string& name) const { return std::stoll(word(name)); }

  template <class T>
  std::vector<T> read(const std::string& name) const {
    std::ifstream file(path_ + "/" + name + ".bin", std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const T* const first = reinterpret_cast<const T*>(bytes.data());
    return std::vector<T>(first, first + bytes.size() / sizeof(T));
  }

  // Null when there is no such file.
  void* upload(const std::string& name) { return upload(read<char>(name)); }

  template <class T>
  void* upload(const std::vector<T>& values) {
    if (values.empty()) {
      return nullptr;
    }
    void* const address = allocate(values.size() * sizeof(T));
    check(cudaMemcpy(address, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return address;
  }

  void* allocate(std::size_t bytes) {
    void* address = nullptr;
    check(cudaMalloc(&address, bytes));
    addresses_.push_back(address);
    return address;
  }

  void download(const std::string& name, const void* address) const {
    std::vector<char> bytes(read<char>(name).size());
    check(cudaMemcpy(bytes.data(), address, bytes.size(), cudaMemcpyDeviceToHost));
    std::ofstream file(path_ + "/" + name + ".bin", std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::string path_;
  std::map<std::string, std::string> words_;
  std::vector<void*> addresses_;
};

void read_cache(Folder& folder, attn::LinearIteratorParams& linear) {
  linear.k = folder.upload("k");
  linear.v = folder.upload("v");
  linear.k_token_stride = folder.number("k_token_stride");
  linear.k_head_stride = folder.number("k_head_stride");
  linear.v_token_stride = folder.number("v_token_stride");
  linear.v_head_stride = folder.number("v_head_stride");
  linear.token_count = folder.number("token_count");
}

void read_cache(Folder& folder, attn::BlockIteratorParams& block) {
  const auto base = reinterpret_cast<std::int64_t>(folder.upload("buffer"));
  std::vector<std::int64_t> pointers = folder.read<std::int64_t>("block_offsets");
  const std::vector<char> used = folder.read<char>("block_used");
  for (std::size_t i = 0; i < pointers.size(); ++i) {
    pointers[i] += used[i] ? base : 0;
  }
  block.block_ptrs = static_cast<const std::int64_t*>(folder.upload(pointers));
  block.cu_block_nums = static_cast<const int*>(folder.upload("cu_block_nums"));
  block.layer_offset = folder.number("layer_offset");
  block.block_len = static_cast<int>(folder.number("block_len"));
}

void read_cache(Folder& folder, attn::PagedIteratorParams& paged) {
  paged.k = folder.upload("k");
  paged.v = folder.upload("v");
  paged.k_block_stride = folder.number("k_block_stride");
  paged.k_token_stride = folder.number("k_token_stride");
  paged.k_head_stride = folder.number("k_head_stride");
  paged.v_block_stride = folder.number("v_block_stride");
  paged.v_token_stride = folder.number("v_token_stride");
  paged.v_head_stride = folder.number("v_head_stride");
  paged.block_table = static_cast<const int*>(folder.upload("block_table"));
  paged.max_blocks = static_cast<int>(folder.number("max_blocks"));
  paged.block_count = static_cast<int>(folder.number("block_count"));
  paged.block_len = static_cast<int>(folder.number("block_len"));
}

template <class Config>
attn::AttentionParams<typename Config::T> read_params(Folder& folder) {
  using T = typename Config::T;
  attn::AttentionParams<T> params;
  params.out = static_cast<T*>(folder.upload("out"));
  params.q = static_cast<const T*>(folder.upload("q"));
  params.stride = folder.number("stride");
  params.lse = static_cast<float*>(folder.upload("lse"));
  params.cu_q_len = static_cast<const int*>(folder.upload("cu_q_len"));
  params.cu_k_len = static_cast<const int*>(folder.upload("cu_k_len"));
  params.finished = static_cast<const bool*>(folder.upload("finished"));
  params.sinks = static_cast<const float*>(folder.upload("sinks"));
  params.token_num = static_cast<int>(folder.number("token_num"));
  params.batch_size = static_cast<int>(folder.number("batch_size"));
  params.max_q_len = static_cast<int>(folder.number("max_q_len"));
  params.max_k_len = static_cast<int>(folder.number("max_k_len"));
  params.num_heads = static_cast<int>(folder.number("num_heads"));
  params.num_kv_heads = static_cast<int>(folder.number("num_kv_heads"));
  params.size_per_head = Config::kHeadDim;
  params.size_per_head_v = Config::kHeadDimV;
  params.inv_sqrt_dh = std::stof(folder.word("inv_sqrt_dh"));
  params.window_size = static_cast<int>(folder.number("window_size"));
  params.causal = Config::kMask == attn::Mask::kCausal;
  params.cache = Config::kCache;
  params.max_split_k = static_cast<int>(folder.number("max_split_k"));
  params.split_cnt = static_cast<int>(folder.number("split_cnt"));
  params.split_size = static_cast<int>(folder.number("split_size"));
  if constexpr (Config::kCache == attn::CacheType::kLinear) {
    read_cache(folder, params.linear_iter_params);
  } else if constexpr (Config::kCache == attn::CacheType::kBlock) {
    read_cache(folder, params.block_iter_params);
  } else {
    read_cache(folder, params.paged_iter_params);
  }
  return params;
}

template <class Config>
attn::Plan plan_of(const attn::AttentionParams<typename Config::T>& params) {
  if constexpr (Config::kMode == attn::Mode::kDecode) {
    return attn::planDecoding<typename Config::Kernel>(params);
  } else {
    return attn::planAttention<typename Config::Kernel>(params);
  }
}

template <class Config>
void invoke(const attn::AttentionParams<typename Config::T>& params) {
  if constexpr (Config::kMode == attn::Mode::kDecode) {
    attn::invokeDecoding<typename Config::Kernel>(params);
  } else {
    attn::invokeAttention<typename Config::Kernel>(params);
  }
}

template <class Config>
void run(Folder& folder) {
  attn::AttentionParams<typename Config::T> params = read_params<Config>(folder);
  attn::prepareAttention<typename Config::Kernel>();
  const attn::Plan plan = plan_of<Config>(params);
  params.counters = static_cast<int*>(folder.upload(std::vector<int>(plan.counter_cnt, 0)));
  if (attn::workspace_size(plan) > 0) {
    attn::set_workspace(params, plan, folder.allocate(attn::workspace_size(plan)));
  }
  invoke<Config>(params);
  check(cudaDeviceSynchronize());
  folder.download("out", params.out);
  folder.download("lse", params.lse);
  std::cout << plan.q_tiles << ' ' << plan.tiles_per_sequence << ' ' << plan.split_cnt << ' '
            << plan.split_tiles << ' ' << plan.grid_x << ' ' << plan.workspace_bytes << '\n';
}

// Prints which field a call is refused for, and why.
template <class Change>
void refuse(attn::AttentionParams<__nv_bfloat16> params, Change change) {
  change(params);
  try {
    attn::invokeAttention<PagedConfig::Kernel>(params);
    std::cout << "accepted\n";
  } catch (const attn::Error& error) {
    std::cout << error.field() << ": " << error.what() << '\n';
  }
}

void print_errors(Folder& folder) {
  const auto good = read_params<PagedConfig>(folder);
  refuse(good, [](auto& params) { params.q = nullptr; });
  refuse(good, [](auto& params) { params.stride += 4; });
  refuse(good, [](auto& params) { params.out += 1; });
  refuse(good, [](auto& params) { params.cu_k_len = nullptr; });
  refuse(good, [](auto& params) { params.size_per_head = 64; });
  refuse(good, [](auto& params) { params.num_kv_heads = 3; });
  refuse(good, [](auto& params) { params.inv_sqrt_dh = 0.0f; });
  refuse(good, [](auto& params) { params.cp_size = 2; });
  refuse(good, [](auto& params) { params.window_size = -1; });
  refuse(good, [](auto& params) { params.split_cnt = 4, params.max_split_k = 0; });
  refuse(good, [](auto& params) { params.paged_iter_params.block_table = nullptr; });
  refuse(good, [](auto& params) { params.paged_iter_params.v_token_stride += 1; });
}

void run_folder(const std::string& path) {
  Folder folder(path);
  const std::string& kernel = folder.word("kernel");
  if (kernel == "prefill_sm80_bf16_d128_paged_causal") {
    run<PagedConfig>(folder);
  } else if (kernel == "prefill_sm80_f16_d64_block_causal") {
    run<BlockConfig>(folder);
  } else if (kernel == "prefill_sm80_bf16_d192_v128_linear_full") {
    run<LinearConfig>(folder);
  } else if (kernel == "decode_sm80_bf16_d128_paged_causal") {
    run<DecodePagedConfig>(folder);
  } else if (kernel == "decode_sm80_f16_d64_block_causal") {
    run<DecodeBlockConfig>(folder);
#ifdef WITH_SM90
  } else if (kernel == "prefill_sm90_bf16_d128_paged_causal") {
    run<HopperPagedConfig>(folder);
  } else if (kernel == "prefill_sm90_f16_d64_linear_full") {
    run<HopperLinearConfig>(folder);
  } else if (kernel == "prefill_sm90_f16_d64_linear_full_t64x64k2") {
    run<HopperSharedKeysConfig>(folder);
  } else if (kernel == "prefill_sm90_bf16_d128_paged_causal_t64x128") {
    run<HopperClustersConfig>(folder);
#endif
  } else {
    throw std::runtime_error("no kernel " + kernel + " in this program");
  }
}

}  // namespace

int main(int count, char** words) try {
  if (count == 3 && std::string(words[1]) == "--errors") {
    Folder folder(words[2]);
    print_errors(folder);
    return 0;
  }
  for (int i = 1; i < count; ++i) {
    run_folder(words[i]);
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
