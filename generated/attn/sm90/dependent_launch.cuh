// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch: a kernel that begins while the one before it ends. The host asks
// for it by a launch attribute (attn/launch.h).
#pragma once

namespace attn::sm90 {

// Returns when the launch before this one has ended and all that it wrote is visible. Before,
// nothing in device memory may be written, and what is read there may still change.
__device__ __forceinline__ void wait_for_former_launch() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

// Lets the next launch begin, once every CTA of this one has called it or ended.
__device__ __forceinline__ void allow_next_launch() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

}  // namespace attn::sm90
