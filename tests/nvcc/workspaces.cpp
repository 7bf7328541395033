// SPDX-License-Identifier: Apache-2.0
// Where set_workspace points the params, and how many splits a launch may then have.
#include <cstdint>
#include <cstdio>

#include "attn/attention.h"
#include "attn/call_problem.h"

namespace {

using Params = attn::AttentionParams<half>;

constexpr std::uintptr_t kBase = 4096;

void* workspace() { return reinterpret_cast<void*>(kBase); }

// Bytes from the start of the workspace.
long offset(const float* pointer) {
  return static_cast<long>(reinterpret_cast<std::uintptr_t>(pointer) - kBase);
}

void print_splits(const char* what, int ctas, int counters) {
  attn::Plan plan;
  plan.split_cnt = 3;
  plan.ranges.ctas = ctas;
  plan.counter_cnt = counters;
  Params params;
  params.max_split_k = 7;
  attn::set_workspace(params, plan, workspace());
  std::printf("%s: max_split_k %d\n", what, params.max_split_k);
}

void print_launched(const char* what, bool has_workspace, int split_cnt, int split_size) {
  Params params;
  params.max_split_k = 7;
  params.split_cnt = split_cnt;
  params.split_size = split_size;
  if (has_workspace) {
    params.partial_O = params.partial_ML = static_cast<float*>(workspace());
  }
  std::printf("%s: at most %d\n", what, attn::detail::launched_splits(params));
}

void print_parts(const char* what, attn::CpForm form, std::int64_t O_at, std::int64_t ML_at) {
  attn::Plan plan;
  plan.partial_ML_offset = 256;
  plan.cp_O_offset = O_at;
  plan.cp_ML_offset = ML_at;
  plan.cp_stride = 100;
  Params params;
  params.cp_rank = 2;
  params.cp_form = form;
  attn::set_workspace(params, plan, workspace());
  const attn::Parts parts = attn::parts_of(params);
  std::printf("%s: partial_O %ld, partial_ML %ld, cp_O %ld, cp_ML %ld, parts %ld of %zu floats\n",
              what,
              offset(params.partial_O),
              offset(params.partial_ML),
              offset(params.cp_O),
              offset(params.cp_ML),
              offset(parts.first),
              parts.floats);
}

}  // namespace

int main() {
  print_splits("prefill", 0, 0);
  print_splits("persistent prefill", 0, 1);
  print_splits("decode of whole splits", 264, 0);
  print_splits("decode of ranges", 264, 1056);
  print_parts("complete", attn::CpForm::kComplete, 1312, 1600);
  print_parts("scaled", attn::CpForm::kScaled, 2048, 1312);
  print_launched("the planner's choice without a workspace", false, 0, 0);
  print_launched("the planner's choice", true, 0, 0);
  print_launched("a count without a workspace", false, 3, 0);
  print_launched("a size without a workspace", false, 0, 64);
  return 0;
}
