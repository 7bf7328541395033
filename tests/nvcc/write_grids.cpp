// SPDX-License-Identifier: Apache-2.0
// The grids of cache writers: reads tokens, KV heads, rows of a step and CTAs of the device.
#include <iostream>

#include "attn/attention.h"
#include "attn/write_check.h"

int main() {
  attn::AttentionParams<half> params;
  for (int step, ctas; std::cin >> params.token_num >> params.num_kv_heads >> step >> ctas;) {
    try {
      std::cout << attn::detail::write_grid(params, step, ctas) << '\n';
    } catch (const attn::Error& error) {
      std::cout << error.field() << '\n';
    }
  }
  return 0;
}
