// SPDX-License-Identifier: Apache-2.0
// What is linked, and how the parts of the API refuse what they cannot do without a device.
#include <cstdio>

#include "attn/attention.h"

namespace {

template <class Call>
void refused(const char* what, Call call) {
  try {
    call();
    std::printf("%s|done\n", what);
  } catch (const attn::Error& error) {
    const int code = static_cast<int>(error.code());
    std::printf("%s|%d|%s|%s\n", what, code, error.field().c_str(), error.what());
  }
}

}  // namespace

int main() {
  for (const attn::KernelInfo& info : attn::kernels()) {
    std::printf("kernel|%s|%d|%d|%d\n", info.name, info.threads, info.warps, info.shared_bytes);
  }
  attn::AttentionParams<half> params;
  params.size_per_head = 128;
  refused("plan", [&] { attn::plan(params); });
  refused("workspace_size", [&] { attn::workspace_size(params); });
  refused("kernel_of", [&] { attn::kernel_of(params); });
  refused("prepare", [] { attn::prepare(0); });
  refused("empty", [&] { attn::dispatchAttention(params); });
  params.token_num = 1;
  params.batch_size = 1;
  refused("null", [&] { attn::dispatchAttention(params); });
  refused("decode", [&] { attn::dispatchDecoding(params); });
  refused("decode plan", [&] { attn::plan(params, attn::Mode::kDecode); });
  params.size_per_head = 96;
  refused("head_dim", [&] { attn::dispatchAttention(params); });
  params.causal = false;  // which decode does not ask for
  refused("decode head_dim", [&] { attn::dispatchDecoding(params); });
  params.causal = true;
  params.size_per_head = 128;
  params.cache = attn::CacheType::kPaged;
  refused("cache", [&] { attn::dispatchAttention(params); });
  params.cache = attn::CacheType::kBlock;
  params.kv_type = attn::KvType::kInt4;
  refused("write kv_type", [&] { attn::dispatchWriting(params); });
  params.kv_type = attn::KvType::kInt8;
  refused("write", [&] { attn::dispatchWriting(params); });
  refused("kv_type", [&] { attn::dispatchAttention(params); });

  attn::Plan plan;
  plan.split_cnt = 2;
  plan.workspace_bytes = 512;
  alignas(256) static char workspace[512];
  refused("small", [&] { attn::set_workspace(params, plan, workspace, 511); });
  refused("none", [&] { attn::set_workspace(params, plan, nullptr, 512); });
  refused("odd", [&] { attn::set_workspace(params, plan, workspace + 1, 512); });
  params.max_split_k = 7;
  plan.ranges.ctas = 8;  // of decode, which shares out ranges
  plan.counter_cnt = 8;
  attn::set_workspace(params, plan, workspace, 512);
  std::printf("bound of ranges|%d\n", params.max_split_k);
  plan.counter_cnt = 0;
  attn::set_workspace(params, plan, workspace, 512);
  std::printf("bound of splits|%d\n", params.max_split_k);
}
