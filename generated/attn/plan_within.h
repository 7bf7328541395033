// SPDX-License-Identifier: Apache-2.0
// How far a call is split that has less workspace than it would like. Pure, like attn/plan.h.
// attn_runtime/plan_within.py is the twin: same integers.
#pragma once

#include <cstdint>

#include "attn/splits.h"

namespace attn {

// The largest bound of splits, below max_split_k where that is set, whose plan takes at most
// `bytes` of workspace; 1 where no other does. plan_of(bound) is the heuristic's plan: a larger
// bound takes no less.
template <class PlanOf>
int splits_that_fit(std::int64_t bytes, int max_split_k, PlanOf&& plan_of) {
  int fits = 1;
  int too_many = max_split_k > 0 ? max_split_k : kMaxSplits;
  while (too_many - fits > 1) {
    const int bound = fits + (too_many - fits) / 2;
    (plan_of(bound).workspace_bytes <= bytes ? fits : too_many) = bound;
  }
  return fits;
}

}  // namespace attn
