// SPDX-License-Identifier: Apache-2.0
// The kernels of attn/emitted.h as a table of functions. Whoever dispatches links all of them, and
// nobody else does: nothing registers itself, so nothing is lost in a static library.
#include <array>

#include "attn/check.h"
#include "attn/decode_plan.h"
#include "attn/dispatch.h"
#include "attn/write_check.h"

namespace attn::detail {

namespace {

template <class Kernel>
const typename Kernel::ParamType& params_of(const void* params) {
  return *static_cast<const typename Kernel::ParamType*>(params);
}

template <class Config>
std::int64_t rank_of(const void* any, int max_split_k, const DeviceLimits& device) {
  const auto& params = params_of<typename Config::Kernel>(any);
  const KernelInfo info = describeAttention<typename Config::Kernel>();
  const KernelLimits kernel = limits_of(info, info.min_ctas_per_sm);
  const SplitPolicy policy = split_policy(max_split_k, params.split_cnt, params.split_size);
  const Problem problem = problem_of<Config>(params);
  return Config::kMode == Mode::kDecode ? rank_decode(problem, device, kernel, policy)
                                        : rank(problem, device, kernel, policy);
}

template <class Config>
constexpr KernelRow row_of() {
  using Kernel = typename Config::Kernel;
  KernelRow row{};
  row.traits.mode = Config::kMode;
  row.traits.element = element_of<typename Config::T>;
  row.traits.kv_type = KvTraits<typename Config::T, typename Config::Tkv>::kType;
  row.traits.cache = Config::kCache;
  row.traits.causal = true;
  row.traits.size_per_head = Config::kHeadDim;
  row.traits.size_per_head_v = Config::kHeadDimV;
  row.family = family_of(typename Config::Arch{});
  if constexpr (Config::kMode == Mode::kWrite) {
    row.describe = [] { return describeWriter<Kernel>(); };
    row.prepare = [] { return prepareWriter<Kernel>(); };
    row.check = [](const void* params) { check_write<Config>(params_of<Kernel>(params)); };
    row.rank = [](const void*, int, const DeviceLimits&) { return std::int64_t{0}; };
    row.plan = [](const void*) { return Plan{}; };
    row.invoke = [](const void* params) { invokeWrite<Kernel>(params_of<Kernel>(params)); };
  } else {
    row.traits.causal = Config::kMask == Mask::kCausal;
    row.describe = [] { return describeAttention<Kernel>(); };
    row.prepare = [] { return prepareAttention<Kernel>(); };
    row.check = [](const void* params) { check_params<Config>(params_of<Kernel>(params)); };
    row.rank = rank_of<Config>;
  }
  if constexpr (Config::kMode == Mode::kDecode) {
    row.plan = [](const void* params) { return planDecoding<Kernel>(params_of<Kernel>(params)); };
    row.invoke = [](const void* params) { invokeDecoding<Kernel>(params_of<Kernel>(params)); };
  } else if constexpr (Config::kMode == Mode::kPrefill) {
    row.plan = [](const void* params) { return planAttention<Kernel>(params_of<Kernel>(params)); };
    row.invoke = [](const void* params) { invokeAttention<Kernel>(params_of<Kernel>(params)); };
  }
  return row;
}

template <class... Configs>
constexpr std::array<KernelRow, sizeof...(Configs)> rows_of(ConfigList<Configs...>) {
  return {row_of<Configs>()...};
}

constexpr auto kRows = rows_of(EmittedKernels{});

}  // namespace

KernelTable kernel_table() { return {kRows.data(), static_cast<int>(kRows.size())}; }

}  // namespace attn::detail
