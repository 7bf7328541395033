// SPDX-License-Identifier: Apache-2.0
// What a C++ engine writes: the documented call. Runs without a GPU, since a bad field is found before any launch.
#include <cstdio>

#include "attn/attention.h"

using Config = attn::AttentionConfig<attn::arch::Sm80, half, 128, attn::CacheType::kBlock>;
using Kernel = Config::Kernel;

namespace {

attn::AttentionParams<half> example() {
  attn::AttentionParams<half> params;
  params.token_num = 1;
  params.batch_size = 1;
  params.max_q_len = 1;
  params.max_k_len = 1;
  params.num_heads = 8;
  params.num_kv_heads = 2;
  params.size_per_head = 128;
  params.inv_sqrt_dh = 0.088f;
  return params;
}

}  // namespace

int main() {
  const attn::AttentionParams<half> params = example();
  try {
    attn::invokeAttention<Kernel>(params);
  } catch (const attn::Error& error) {
    std::printf("%d %s: %s\n", static_cast<int>(error.code()), error.field().c_str(), error.what());
    return error.field() == "out" && error.code() == attn::Status::kInvalidArgument ? 0 : 1;
  }
  return 1;
}
