// SPDX-License-Identifier: Apache-2.0
// The host side of a decode unit: the definition of invokeDecoding, which the unit instantiates.
#pragma once

#include "attn/attention_template.cuh"
#include "attn/config.h"
#include "attn/row_tile.cuh"

#ifndef __CUDACC_RTC__
#include "attn/decode_plan.h"

namespace attn {

namespace detail {

template <class Kernel>
Plan decode_plan_of(const typename Kernel::ParamType& params, const KernelInfo& info) {
  return plan_decode(problem_of<typename Kernel::Config>(params),
                     device_limits(info),
                     limits_of(info, info.ctas_per_sm),
                     split_policy(params.max_split_k, params.split_cnt, params.split_size));
}

// What a plan needs of the caller.
template <class T>
void check_decode_memory(const Plan& plan, const AttentionParams<T>& params) {
  if (plan.workspace_bytes > 0 && (params.partial_O == nullptr || params.partial_ML == nullptr)) {
    throw Error(Status::kWorkspaceTooSmall,
                "partial_O",
                "partial_O or partial_ML is null, but this call is split: give a workspace of " +
                    std::to_string(plan.workspace_bytes) +
                    " bytes (set_workspace), or set max_split_k to 1");
  }
  if (plan.counter_cnt > 0 && params.counters == nullptr) {
    refuse_field("counters",
                 "is null, but this call needs " + std::to_string(plan.counter_cnt) +
                     " ints of device memory, zeroed once: give them, or set split_cnt, split_size "
                     "or max_split_k to 1");
  }
}

// Whether a call asks for nothing but the last tokens of few sequences, which see all keys before
// them: the shortest calls are among these. A tile of the fewest rows takes one token of each.
// attn::sm80::plain says so to the compiler; attn_runtime/decode_launch.py is the twin.
template <class T>
bool is_plain(const DecodeArguments<T>& arguments, int tile_rows) {
  const AttentionParams<T>& params = arguments.params;
  const bool has_options = params.window_size > 0 || params.cp_size > 1 ||
                           params.offset_q != nullptr || params.k != nullptr;
  const bool has_few_tokens = arguments.plan.cta_q == 1 || tile_rows > kRowsOfOneToken;
  return !has_options && params.batch_size <= kMostPlainSequences && arguments.plan.q_tiles == 1 &&
         has_few_tokens && arguments.ranges.columns == params.num_kv_heads &&
         arguments.ranges.pieces == 0;
}

}  // namespace detail

// The second parameter is void: attention.h, for callers, puts a check in its place.
template <class Kernel, class = void>
Plan planDecoding(const typename Kernel::ParamType& params) {
  return detail::decode_plan_of<Kernel>(params, detail::state_of<Kernel>().on_current_device());
}

template <class Kernel, class = void>
void invokeDecoding(const typename Kernel::ParamType& params) {
  using Config = typename Kernel::Config;

  // 1. Check and plan.
  if (params.token_num == 0 || params.batch_size == 0) {
    return;
  }
  detail::check_params<Config>(params);
  typename Kernel::Arguments arguments;
  arguments.params = params;
  arguments.params.causal = true;
  arguments.params.max_split_k = detail::launched_splits(params);
  if (params.max_k_len <= 0) {
    arguments.params.paged_iter_params.max_blocks = 0;  // without keys the table need not exist
  }
  const KernelInfo& info = detail::state_of<Kernel>().on_current_device();
  const Plan plan = detail::decode_plan_of<Kernel>(arguments.params, info);
  detail::check_decode_memory(plan, arguments.params);
  detail::check_parts(params, plan);
  arguments.plan = tile_plan(plan);
  arguments.ranges = plan.ranges;
  if (plan.grid_x == 0) {
    return;
  }

  // 2. The kernel, which leaves whole splits to the reduction and merges ranges itself.
  detail::Entry entry = EntryOf<Kernel>::entry();
  int cluster = 1;
  if (entry.plain_address != nullptr && detail::is_plain(arguments, entry.cta_q)) {
    cluster = plan.cluster;
    entry.address = cluster > 1 ? entry.clusters_address : entry.plain_address;
  }
  detail::launch(entry, plan.grid_x, params.stream, arguments, cluster);
  detail::finish<Kernel>({arguments.params, arguments.plan}, plan);
}

}  // namespace attn
#endif
