// SPDX-License-Identifier: Apache-2.0
// What host code refuses, one line for each bad field: no kernel is linked, and no GPU is asked.
#include <cstdint>
#include <cstdio>
#include <limits>

#include "attn/attention.h"
#include "attn/check.h"
#include "attn/write_check.h"

namespace {

using attn::CacheType;
using attn::arch::Sm80;
using Params = attn::AttentionParams<half>;
using Paged = attn::AttentionConfig<Sm80, half, 128, CacheType::kPaged>;
using Block = attn::AttentionConfig<Sm80, half, 128, CacheType::kBlock>;
using Linear = attn::AttentionConfig<Sm80, half, 128, CacheType::kLinear>;
using Decode = attn::DecodingConfig<Sm80, half, 128, CacheType::kPaged>;
using Write = attn::WriteConfig<Sm80, half, 128, CacheType::kPaged>;
using Narrow =
    attn::AttentionConfig<Sm80, half, 192, CacheType::kPaged, attn::Mask::kCausal, half, 128>;

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A call that is right, for the kernels of one width.
Params example() {
  Params params;
  params.out = at<half>(256);
  params.q = at<half>(256);
  params.stride = 1024;
  params.cu_q_len = at<int>(4);
  params.cu_k_len = at<int>(4);
  params.token_num = 10;
  params.batch_size = 2;
  params.max_q_len = 5;
  params.max_k_len = 100;
  params.num_heads = 8;
  params.num_kv_heads = 2;
  params.size_per_head = 128;
  params.inv_sqrt_dh = 0.088f;
  params.linear_iter_params.k = at<half>(256);
  params.linear_iter_params.v = at<half>(256);
  params.linear_iter_params.token_count = 100;
  params.linear_iter_params.k_token_stride = params.linear_iter_params.v_token_stride = 256;
  params.block_iter_params.block_ptrs = at<std::int64_t>(8);
  params.block_iter_params.cu_block_nums = at<int>(4);
  params.block_iter_params.block_len = 64;
  params.paged_iter_params.k = at<half>(256);
  params.paged_iter_params.v = at<half>(256);
  params.paged_iter_params.block_table = at<int>(4);
  params.paged_iter_params.max_blocks = 8;
  params.paged_iter_params.block_count = 8;
  params.paged_iter_params.block_len = 64;
  params.paged_iter_params.k_token_stride = params.paged_iter_params.v_token_stride = 256;
  params.k_stride = params.v_stride = 256;
  return params;
}

template <class Call>
void tell(Call&& call) {
  try {
    call();
    std::puts("accepted");
  } catch (const attn::Error& error) {
    std::printf("%s | %s\n", error.field().c_str(), error.what());
  }
}

template <class Config, class Change>
void refuse(Change&& change) {
  Params params = example();
  change(params);
  tell([&] { attn::detail::check_params<Config>(params); });
}

}  // namespace

int main() {
  refuse<Paged>([](Params&) {});
  refuse<Paged>([](Params& p) { p.q = nullptr; });
  refuse<Paged>([](Params& p) { p.q = at<half>(8); });
  refuse<Paged>([](Params& p) { p.stride = 1023; });
  refuse<Paged>([](Params& p) { p.stride = 0; });
  refuse<Paged>([](Params& p) {
    p.stride = 0;
    p.token_num = 1;
  });
  refuse<Paged>([](Params& p) { p.size_per_head = 64; });
  refuse<Narrow>([](Params& p) { p.size_per_head = 192; });
  refuse<Paged>([](Params& p) { p.kv_type = attn::KvType::kInt8; });
  refuse<Paged>([](Params& p) { p.inv_sqrt_dh = std::numeric_limits<float>::quiet_NaN(); });
  refuse<Paged>([](Params& p) { p.sinks = at<float>(4); });
  refuse<Block>([](Params& p) { p.block_iter_params.layer_offset = 8; });
  refuse<Paged>([](Params& p) { p.paged_iter_params.k_head_stride = 4; });
  refuse<Paged>([](Params& p) { p.paged_iter_params.k_head_stride = 0; });
  refuse<Paged>([](Params& p) { p.paged_iter_params.v_token_stride = 0; });
  refuse<Linear>([](Params& p) { p.linear_iter_params.k_token_stride = 0; });
  refuse<Paged>([](Params& p) { p.cp_size = 2; });
  refuse<Linear>([](Params& p) { p.cp_size = 2; });
  for (const int stride : {8 * 128, 8 * 128 - 8}) {  // the heads of a token, and less
    refuse<Paged>([stride](Params& p) {
      p.cp_size = 2;
      p.cp_form = attn::CpForm::kPartOnly;
      p.cp_out_stride = stride;
    });
  }
  refuse<Paged>([](Params& p) {
    p.split_cnt = 2;
    p.split_size = 512;
  });
  refuse<Decode>([](Params& p) { p.k = at<half>(256); });
  refuse<Decode>([](Params& p) { p.k = p.v = at<half>(264); });
  refuse<Decode>([](Params& p) {
    p.k = p.v = at<half>(256);
    p.offset_q = at<int>(4);
  });
  refuse<Decode>([](Params& p) {
    p.k = p.v = at<half>(256);
    p.cp_size = 2;
    p.cp_form = attn::CpForm::kPartOnly;
  });
  refuse<Decode>([](Params& p) {
    p.k = p.v = at<half>(256);
    p.v_stride = 0;
  });
  Params written = example();
  written.k = written.v = at<half>(256);
  written.max_k_len = 0;  // which writers do not read
  tell([&] { attn::detail::check_write<Write>(written); });
  written.paged_iter_params.block_table = nullptr;
  tell([&] { attn::detail::check_write<Write>(written); });
  attn::Plan parts;
  parts.cp_stride = 100;
  for (const int stride : {102, 101, 98}) {
    Params rank = example();
    rank.cp_size = 2;
    rank.cp_O = rank.cp_ML = at<float>(256);
    rank.cp_stride = stride;
    tell([&] { attn::detail::check_parts(rank, parts); });
  }
  attn::Plan plan;
  plan.split_cnt = 3;
  plan.workspace_bytes = 1000;
  Params params = example();
  tell([&] { attn::set_workspace(params, plan, nullptr, 0); });
  tell([&] { attn::set_workspace(params, plan, at<char>(256), 10); });
  tell([&] { attn::set_workspace(params, plan, at<char>(8), 1000); });
  return 0;
}
