// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "attn/attention.h"
#include "attn/attn_c.h"

void print_theirs() {
  std::printf("theirs %d:", theirs_kernel_count());
  for (const theirs::KernelInfo& info : theirs::kernels()) {
    std::printf(" %s", info.name);
  }
  std::printf("\n");
}
