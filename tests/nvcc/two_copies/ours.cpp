// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "attn/attention.h"
#include "attn/attn_c.h"

void print_ours() {
  std::printf("ours %d:", attn_kernel_count());
  for (const attn::KernelInfo& info : attn::kernels()) {
    std::printf(" %s", info.name);
  }
  std::printf("\n");
}
