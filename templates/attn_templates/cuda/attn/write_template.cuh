// SPDX-License-Identifier: Apache-2.0
// The host side of a cache writer's unit: the definition of invokeWrite, which the unit
// instantiates.
#pragma once

#include "attn/config.h"

#ifndef __CUDACC_RTC__
#include "attn/launch.h"
#include "attn/write_check.h"

namespace attn {

// Specialised by each unit: `static detail::Entry entry()`.
template <class Kernel>
struct WriteEntryOf;

namespace detail {

// A writer made from this PTX and later waits for the launch before it by itself.
constexpr int kWaitingPtx = 90;

template <class Kernel>
KernelState& writer_state() {
  static KernelState state(WriteEntryOf<Kernel>::entry());
  return state;
}

}  // namespace detail

// The second parameter is void: attention.h, for callers, puts a check in its place.
template <class Kernel, class = void>
KernelInfo describeWriter() {
  return detail::describe(WriteEntryOf<Kernel>::entry());
}

template <class Kernel, class = void>
KernelInfo prepareWriter() {
  return detail::writer_state<Kernel>().on_current_device();
}

template <class Kernel, class = void>
void invokeWrite(const typename Kernel::ParamType& params) {
  if (params.token_num == 0 || params.batch_size == 0) {
    return;
  }
  detail::check_write<typename Kernel::Config>(params);
  const KernelInfo& info = detail::writer_state<Kernel>().on_current_device();
  detail::Entry entry = WriteEntryOf<Kernel>::entry();
  entry.is_dependent = info.ptx_version >= detail::kWaitingPtx;
  const int grid = detail::write_grid(params, entry.cta_q, info.sm_count * info.ctas_per_sm);
  detail::launch(entry, grid, params.stream, params);
}

}  // namespace attn
#endif
