// SPDX-License-Identifier: Apache-2.0
#include "overhead.cuh"

using Config =
    attn::AttentionConfig<attn::arch::Sm90, __nv_bfloat16, 128, attn::CacheType::kLinear>;

int main() { return measure<Config::Kernel, __nv_bfloat16>(); }
