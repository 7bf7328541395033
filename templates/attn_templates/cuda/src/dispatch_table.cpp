// SPDX-License-Identifier: Apache-2.0
// The kernels of attn/emitted.h as a table of functions. Whoever dispatches links all of them, and
// nobody else does: nothing registers itself, so nothing is lost in a static library.
#include <array>
#include <type_traits>

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

// Prefill kernels that read by TMA pack the heads of a group; causal ones see as decode does. Over
// e4m3 they take fewer scales.
template <class Config>
constexpr bool takes_many_rows() {
  if constexpr (Config::kMode == Mode::kPrefill) {
    return Config::kMask == Mask::kCausal && std::is_same_v<typename Config::Arch, arch::Sm90> &&
           !std::is_same_v<typename Config::Tkv, E4m3>;
  }
  return false;
}

// The rows of partial results that a decode call has memory for on the current device.
template <class Config>
std::int64_t room_of(const typename Config::Kernel::ParamType& params) {
  DeviceLimits device;
  device.sm_count = prepareAttention<typename Config::Kernel>().sm_count;
  const SplitPolicy policy = split_policy(params.max_split_k, params.split_cnt, params.split_size);
  return room_for(problem_of<Config>(params), device, policy);
}

// The params with as many splits as have room.
template <class Config>
typename Config::Kernel::ParamType split_within(const void* any) {
  auto params = params_of<typename Config::Kernel>(any);
  params.max_split_k = splits_within(problem_of<Config>(params), room_of<Config>(params));
  return params;
}

template <class Config>
std::int64_t rank_many_rows_of(const void* any,
                               int max_split_k,
                               const DeviceLimits& device,
                               const KernelInfo& decode) {
  const auto& params = params_of<typename Config::Kernel>(any);
  const KernelInfo info = describeAttention<typename Config::Kernel>();
  const SplitPolicy policy = split_policy(max_split_k, params.split_cnt, params.split_size);
  const Problem problem = problem_of<Config>(params);
  const KernelLimits own = limits_of(decode, decode.min_ctas_per_sm);
  constexpr bool kOverCodes = !std::is_same_v<typename Config::Tkv, typename Config::T>;
  if (!has_many_rows(problem, own, policy, kOverCodes)) {
    return kUnfit;
  }
  return rank_many_rows(problem, device, limits_of(info, info.min_ctas_per_sm), policy);
}

template <class Config>
constexpr ManyRows many_rows_of() {
  using Kernel = typename Config::Kernel;
  ManyRows many_rows{};
  many_rows.rank = rank_many_rows_of<Config>;
  many_rows.plan = [](const void* params, const Plan& decode) {
    const auto& call = params_of<Kernel>(params);
    return with_memory(problem_of<Config>(call),
                       decode,
                       room_of<Config>(call),
                       planAttention<Kernel>(split_within<Config>(params)));
  };
  many_rows.invoke = [](const void* params) {
    invokeAttention<Kernel>(split_within<Config>(params));
  };
  return many_rows;
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
  if constexpr (takes_many_rows<Config>()) {
    row.many_rows = many_rows_of<Config>();
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
