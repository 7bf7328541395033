// SPDX-License-Identifier: Apache-2.0
// The host side of the reduction. Each attention unit calls it; the reduction units define it.
#pragma once

#include "attn/config.h"

namespace attn {

// Merges the splits of a call. One unit instantiates it for each element type and width of V.
template <class Config>
void invokeReduce(const Arguments<typename Config::T>& arguments, int grid_x);

// Loads the reduction on the current device.
template <class Config>
void prepareReduce();

template <class Kernel>
using ReductionOf = ReduceConfig<typename Kernel::Config::T, Kernel::Config::kHeadDimV>;

}  // namespace attn
