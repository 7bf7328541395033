// SPDX-License-Identifier: Apache-2.0
// The documented call, to one kernel: first with nothing filled in, then with addresses that only
// a device could follow. Prints how each is refused.
#include <cstdint>
#include <cstdio>

#include "attn/attention.h"

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;

namespace {

template <class T>
T* address() {
  return reinterpret_cast<T*>(std::uintptr_t{4096});
}

void call(const attn::AttentionParams<half>& params) {
  try {
    attn::invokeAttention<Config::Kernel>(params);
    std::puts("launched");
  } catch (const attn::Error& error) {
    std::printf("%d|%s|%s\n", static_cast<int>(error.code()), error.field().c_str(), error.what());
  }
}

}  // namespace

int main() {
  attn::AttentionParams<half> params;
  params.token_num = 1;
  params.batch_size = 1;
  params.max_q_len = 1;
  params.max_k_len = 1;
  params.num_heads = 8;
  params.num_kv_heads = 2;
  params.size_per_head = 128;
  params.inv_sqrt_dh = 0.088f;
  call(params);

  params.out = address<half>();
  params.q = address<half>();
  params.stride = 8 * 128;
  params.cu_q_len = address<int>();
  params.cu_k_len = address<int>();
  params.block_iter_params.block_ptrs = address<std::int64_t>();
  params.block_iter_params.cu_block_nums = address<int>();
  params.block_iter_params.block_len = 64;
  call(params);
  params.max_k_len = -1;
  call(params);
  params.max_k_len = 1;
  params.split_cnt = -1;
  call(params);
}
