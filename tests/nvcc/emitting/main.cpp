// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "attn/attention.h"

int main() {
  for (const own::KernelInfo& info : own::kernels()) {
    std::printf("%s\n", info.name);
  }
}
