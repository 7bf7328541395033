// SPDX-License-Identifier: Apache-2.0
// Which decode calls are plain, and what a plan needs of the caller: host code, no kernel.
#include <iostream>

#include "attn/decode_template.cuh"

namespace {

using T = half;

bool is_plain(std::istream& in) {
  static int offsets = 0;
  static T row{};
  attn::DecodeArguments<T> call;
  bool has_offsets, has_rows;
  int tile_rows;
  in >> call.params.window_size >> call.params.cp_size >> has_offsets >> has_rows;
  in >> call.params.batch_size >> call.params.num_kv_heads >> call.plan.q_tiles >> call.plan.cta_q;
  in >> call.ranges.columns >> call.ranges.pieces >> tile_rows;
  call.params.offset_q = has_offsets ? &offsets : nullptr;
  call.params.k = has_rows ? &row : nullptr;
  return attn::detail::is_plain(call, tile_rows);
}

// The field that a plan of so many counters and bytes refuses, of a call that has memory for
// neither or for both.
const char* refused(int counters, int bytes, bool has_memory) {
  static float memory[2];
  static int counter = 0;
  static std::string field;
  attn::Plan plan;
  plan.counter_cnt = counters;
  plan.workspace_bytes = bytes;
  attn::AttentionParams<T> params;
  if (has_memory) {
    params.partial_O = params.partial_ML = memory;
    params.counters = &counter;
  }
  try {
    attn::detail::check_decode_memory(plan, params);
    return "nothing";
  } catch (const attn::Error& error) {
    field = error.field();
    return field.c_str();
  }
}

}  // namespace

int main() {
  std::cout << refused(0, 0, false) << '\n';
  std::cout << refused(0, 8, false) << '\n';
  std::cout << refused(1, 0, false) << '\n';
  std::cout << refused(1, 8, true) << '\n';
  while (std::cin >> std::ws && !std::cin.eof()) {
    std::cout << is_plain(std::cin) << '\n';
  }
  return 0;
}
