// SPDX-License-Identifier: Apache-2.0
// Which tile a call takes, where kernels differ in their tiles alone. attn_runtime/choose.py is the
// twin: same names and integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attn/plan.h"

namespace attn {

namespace detail {

// The rank of a kernel that the device cannot run.
inline constexpr std::int64_t kUnfit = std::numeric_limits<std::int64_t>::max();

// Of kernels with splits of a given size, the cheapest for long keys: bits may depend neither on
// the batch nor on the bounds of lengths, and so the tile may not.
//
//   2^32 step_ns / (rows x keys of the CTAs on an SM)
inline std::int64_t rank_of_keys(const KernelLimits& kernel) {
  return (std::int64_t{kernel.step_ns} << 32) / kernel.cta_q / kernel.cta_s / kernel.ctas_per_sm;
}

}  // namespace detail

// Of kernels that could take a call, the one of least rank takes it; of equals, the first. The rank
// is what the call is estimated to take, with the splits that plan() would take. With max_split_k
// set to these splits, the least rank stays where it was. Throws Error as plan() does for a value
// out of range.
inline std::int64_t rank(const Problem& problem,
                         const DeviceLimits& device,
                         const KernelLimits& kernel,
                         const SplitPolicy& policy) {
  detail::check(problem, device, kernel, policy);
  if (kernel.shared_bytes > device.shared_per_cta) {
    return detail::kUnfit;
  }
  if (policy.kind == SplitKind::kFixedSize) {
    return detail::rank_of_keys(kernel);
  }
  const auto [packed, limits] = pack_heads(problem, kernel, policy);
  const detail::Works works = detail::works_of(packed, limits);
  std::int64_t splits = 1;
  if (policy.kind == SplitKind::kHeuristic) {
    splits = detail::heuristic_splits(works, device, limits, policy.max_split_k);
  } else if (policy.kind == SplitKind::kFixed) {
    splits = std::min<std::int64_t>(policy.value, kMaxHeuristicSplits);
    splits = std::max<std::int64_t>(std::min(splits, works.first.longest), 1);
  }
  return detail::expected_ns(works, device, limits, splits);
}

}  // namespace attn
