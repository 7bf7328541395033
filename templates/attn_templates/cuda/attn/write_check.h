// SPDX-License-Identifier: Apache-2.0
// Refuses parameters that a cache writer cannot run with, before anything is launched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attn/check.h"

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

// CTAs that take turns at the rows, `step` of them at a time, each of one token and KV head; the
// device holds `ctas`. Up to three turns each there are no more. Of more rows each CTA takes two:
// those that come later begin while others end, and what all do at a time lies closer together.
// attn_runtime/write_call.py is the twin.
template <class T>
int write_grid(const AttentionParams<T>& params, int step, int ctas) {
  constexpr std::int64_t kMostTurns = 3;  // of a CTA, where all are there at a time
  const std::int64_t rows = static_cast<std::int64_t>(params.token_num) * params.num_kv_heads;
  if (rows > std::numeric_limits<int>::max()) {
    refuse_field("token_num",
                 "is " + std::to_string(params.token_num) + " tokens of " +
                     std::to_string(params.num_kv_heads) +
                     " KV heads: more rows than one call takes, write them in parts");
  }
  const std::int64_t steps = (rows + step - 1) / step;
  const bool is_one_wave = steps <= kMostTurns * ctas;
  return static_cast<int>(is_one_wave ? std::min<std::int64_t>(steps, ctas) : (steps + 1) / 2);
}

}  // namespace attn::detail
