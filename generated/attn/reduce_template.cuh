// SPDX-License-Identifier: Apache-2.0
// The host side of a reduction unit: the definition of invokeReduce, which the unit instantiates.
#pragma once

#include "attn/config.h"
#include "attn/reduce.cuh"

#ifndef __CUDACC_RTC__
#include "attn/launch.h"
#include "attn/reduce_template.h"

namespace attn {

// Specialised by each unit: `static detail::Entry entry()`.
template <class Config>
struct ReduceEntryOf;

template <class Config>
void prepareReduce() {
  static detail::KernelState state(ReduceEntryOf<Config>::entry());
  state.on_current_device();
}

template <class Config>
void invokeReduce(const Arguments<typename Config::T>& arguments, int grid_x) {
  detail::launch(ReduceEntryOf<Config>::entry(), grid_x, arguments.params.stream, arguments);
}

}  // namespace attn
#endif
