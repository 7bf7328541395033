// SPDX-License-Identifier: Apache-2.0
// Refuses parameters that a cache writer cannot run with, before anything is launched.
#pragma once

#include <limits>

#include "attn/check.h"
#include "attn/kv_type.h"

namespace attn::detail {

template <class Config>
void check_write(const AttentionParams<typename Config::T>& params) {
  check_new_rows(params);
  check_shard<Config>(params);
  need_pointer("cu_q_len", params.cu_q_len);
  need_pointer("cu_k_len", params.cu_k_len);
  need_positive("num_kv_heads", params.num_kv_heads);
  check_widths<Config>(params);
  check_cache_of<Config>(params);
}

// The most CTAs that have rows to write, `step` of them at a time, each of one token and KV head.
template <class T>
int write_grid(const AttentionParams<T>& params, int step) {
  const std::int64_t rows = static_cast<std::int64_t>(params.token_num) * params.num_kv_heads;
  if (rows > std::numeric_limits<int>::max()) {
    refuse_field("token_num",
                 "is " + std::to_string(params.token_num) + " tokens of " +
                     std::to_string(params.num_kv_heads) +
                     " KV heads: more rows than one call takes, write them in parts");
  }
  return static_cast<int>((rows + step - 1) / step);
}

}  // namespace attn::detail
