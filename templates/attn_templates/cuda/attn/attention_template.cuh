// SPDX-License-Identifier: Apache-2.0
// The host side of a prefill unit: the definition of invokeAttention, which the unit instantiates.
#pragma once

#include "attn/config.h"

#ifndef __CUDACC_RTC__
#include "attn/check.h"
#include "attn/launch.h"
#include "attn/plan.h"
#include "attn/reduce_template.h"
#include "attn/tma_arguments.h"

namespace attn {

// Specialised by each unit: `static detail::Entry entry()`.
template <class Kernel>
struct EntryOf;

namespace detail {

template <class Kernel>
KernelState& state_of() {
  static KernelState state(EntryOf<Kernel>::entry());
  return state;
}

inline DeviceLimits device_limits(const KernelInfo& info) {
  DeviceLimits device;
  device.sm_count = info.sm_count;
  return device;
}

template <class Kernel>
Plan plan_of(const typename Kernel::ParamType& params, const KernelInfo& info) {
  return plan(problem_of<typename Kernel::Config>(params),
              device_limits(info),
              limits_of(info, info.ctas_per_sm),
              split_policy(params.max_split_k, params.split_cnt, params.split_size));
}

template <class Kernel>
void reduce(Arguments<typename Kernel::Config::T> arguments, Merge merge, const Plan& plan) {
  arguments.plan.merge = merge;
  invokeReduce<ReductionOf<Kernel>>(arguments, plan.reduce_grid_x);
}

// What follows a kernel that has left the splits of its rows, or complete rows: what the caller
// wants between, and the reduction.
template <class Kernel>
void finish(const Arguments<typename Kernel::Config::T>& finished, const Plan& plan) {
  const auto& params = finished.params;
  if (params.cp_size == 1) {
    if (params.cp_fn != nullptr) {
      params.cp_fn(params.cp_fn_ctx);
    }
    if (plan.split_cnt > 1 && plan.cluster == 1) {
      reduce<Kernel>(finished, Merge::kSplits, plan);
    }
    return;
  }
  // Of many ranks: the splits of this one, the exchange, the parts of all.
  if (plan.split_cnt > 1) {
    reduce<Kernel>(finished, Merge::kSplitsToPart, plan);
  }
  if (params.cp_form != CpForm::kPartOnly) {
    params.cp_fn(params.cp_fn_ctx);
    reduce<Kernel>(finished, Merge::kRanks, plan);
  }
}

}  // namespace detail

// The second parameter is void: attention.h, for callers, puts a check in its place.
template <class Kernel, class = void>
KernelInfo describeAttention() {
  return detail::describe(EntryOf<Kernel>::entry());
}

template <class Kernel, class = void>
KernelInfo prepareAttention() {
  prepareReduce<ReductionOf<Kernel>>();
  return detail::state_of<Kernel>().on_current_device();
}

template <class Kernel, class = void>
Plan planAttention(const typename Kernel::ParamType& params) {
  return detail::plan_of<Kernel>(params, detail::state_of<Kernel>().on_current_device());
}

template <class Kernel, class = void>
void invokeAttention(const typename Kernel::ParamType& params) {
  using Config = typename Kernel::Config;

  // 1. Check and plan.
  if (params.token_num == 0 || params.batch_size == 0) {
    return;
  }
  detail::check_params<Config>(params);
  typename Kernel::Arguments arguments;
  arguments.params = params;
  arguments.params.causal = Config::kMask == Mask::kCausal;
  arguments.params.max_split_k = detail::launched_splits(params);
  const KernelInfo& info = detail::state_of<Kernel>().on_current_device();
  const Plan plan = detail::plan_of<Kernel>(arguments.params, info);
  if (plan.split_cnt > 1 && (params.partial_O == nullptr || params.partial_ML == nullptr)) {
    throw Error(Status::kWorkspaceTooSmall,
                "partial_O",
                "partial_O or partial_ML is null, but this call is split " +
                    std::to_string(plan.split_cnt) + " ways: give a workspace of " +
                    std::to_string(plan.workspace_bytes) +
                    " bytes (set_workspace), or set max_split_k to 1");
  }
  detail::check_parts(params, plan);
  arguments.plan = tile_plan(plan);
  if (plan.grid_x == 0) {
    return;
  }
  if (params.cp_size > 1 && plan.split_cnt == 1) {
    arguments.params.partial_O = params.cp_O;  // the kernel leaves this rank's part itself
    arguments.params.partial_ML = params.cp_ML;
  }
  if constexpr (ArgumentsOf<Config::kMode, typename Config::Arch, typename Config::T>::kHasMaps) {
    detail::complete<Config>(arguments);
  }

  // 2. The kernel, then what the caller wants between, then the reduction.
  const int grid_x = detail::ctas_of(EntryOf<Kernel>::entry(), plan, info);
  detail::launch(EntryOf<Kernel>::entry(), grid_x, params.stream, arguments, plan.cluster);
  detail::finish<Kernel>({arguments.params, arguments.plan}, plan);
}

}  // namespace attn
#endif
