// SPDX-License-Identifier: Apache-2.0
// The C ABI over the C++ API: converts the structs, catches everything, remembers what failed.
#include "attn/attn_c.h"

#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>

#include "attn/c_params.h"
#include "attn/dispatch.h"

namespace attn {

namespace {

static_assert(ATTN_INTERNAL_ERROR == static_cast<int>(Status::kInternalError) &&
                  ATTN_BF16 == static_cast<int>(detail::Element::kBf16) &&
                  ATTN_PAGED == static_cast<int>(CacheType::kPaged) &&
                  ATTN_KV_E4M3 == static_cast<int>(KvType::kE4m3) &&
                  ATTN_WRITE == static_cast<int>(Mode::kWrite) &&
                  ATTN_KEYS_ZIGZAG == static_cast<int>(KeySharding::kZigZag) &&
                  ATTN_CP_PART_ONLY == static_cast<int>(CpForm::kPartOnly),
              "C and C++ count alike");

// Of a fixed size, so that an error can be kept when memory cannot be had.
struct LastError {
  char message[1024];
  char field[64];
};

thread_local LastError last_error{};

attn_status_t remember(Status status, const char* field, const char* message) noexcept {
  std::snprintf(last_error.message, sizeof(last_error.message), "%s", message);
  std::snprintf(last_error.field, sizeof(last_error.field), "%s", field);
  return static_cast<attn_status_t>(status);
}

template <class Call>
attn_status_t guarded(Call&& call) noexcept {
  try {
    call();
    return ATTN_SUCCESS;
  } catch (const Error& error) {
    return remember(error.code(), error.field().c_str(), error.what());
  } catch (const std::exception& error) {
    return remember(Status::kInternalError, "", error.what());
  } catch (...) {
    return remember(Status::kInternalError, "", "an exception that is no std::exception");
  }
}

const detail::KernelRow& row_at(int kernel) {
  const detail::KernelTable table = detail::kernel_table();
  if (kernel < 0 || kernel >= table.count) {
    detail::refuse_field("kernel",
                         "is " + std::to_string(kernel) + ": " + std::to_string(table.count) +
                             " kernels are linked, counted from 0");
  }
  return table.rows[kernel];
}

KernelInfo info_of(const detail::KernelRow& row, int device) {
  if (device == ATTN_ANY_DEVICE) {
    return row.describe();
  }
  const detail::DeviceScope scope(device);
  return row.prepare();
}

// The kernel that takes a call on a device.
template <class T>
const detail::KernelRow& row_for(const AttentionParams<T>& params, Mode mode, int device) {
  if (device == ATTN_ANY_DEVICE) {
    return detail::kernel_for(detail::traits_of(params, mode));
  }
  const detail::DeviceScope scope(device);
  return detail::take(params, mode, params.max_split_k).row();
}

void fill(const detail::KernelRow& row, const KernelInfo& from, attn_kernel_info_t& to) {
  to.name = from.name;
  to.mode = static_cast<int>(row.traits.mode);
  to.dtype = static_cast<int>(row.traits.element);
  to.kv_type = static_cast<int>(row.traits.kv_type);
  to.cache = static_cast<int>(row.traits.cache);
  to.causal = row.traits.causal;
  to.size_per_head = row.traits.size_per_head;
  to.size_per_head_v = row.traits.size_per_head_v;
  to.first_capability = row.family.first;
  to.last_capability = row.family.last;
  to.threads = from.threads;
  to.warps = from.warps;
  to.shared_bytes = from.shared_bytes;
  to.cta_q = from.cta_q;
  to.cta_s = from.cta_s;
  to.registers = from.registers;
  to.local_bytes = from.local_bytes;
  to.static_shared_bytes = from.static_shared_bytes;
  to.ctas_per_sm = from.ctas_per_sm;
  to.sm_count = from.sm_count;
}

template <class T>
void run(AttentionParams<T> params, Mode mode, void* workspace, std::size_t workspace_bytes) {
  if (detail::is_empty(params) || (workspace == nullptr && workspace_bytes == 0)) {
    detail::dispatch(params, mode);
    return;
  }
  detail::kernel_for(detail::traits_of(params, mode)).check(&params);
  const auto [call, plan] = detail::plan_within(params, mode, workspace_bytes);
  set_workspace(params, plan, workspace, workspace_bytes);
  call.invoke(&params);
}

}  // namespace

#pragma GCC visibility push(default)

// C has no namespaces: these are global under their C names.
extern "C" {

int attn_kernel_count(void) { return detail::kernel_table().count; }

attn_status_t attn_kernel_info(int kernel, int device, attn_kernel_info_t* info) {
  return guarded([&] {
    detail::need_struct("info", info);
    const detail::KernelRow& row = row_at(kernel);
    fill(row, info_of(row, device), *info);
  });
}

attn_status_t attn_prepare(int device) {
  return guarded([&] { prepare(device); });
}

attn_status_t attn_find(const attn_params_t* params, int device, int* kernel) {
  return guarded([&] {
    detail::need_argument("kernel", kernel);
    detail::with_params(params, [&](const auto& call) {
      const Mode mode = detail::mode_of(*params);
      *kernel = static_cast<int>(&row_for(call, mode, device) - detail::kernel_table().rows);
    });
  });
}

attn_status_t attn_workspace_size(const attn_params_t* params, size_t* bytes) {
  return guarded([&] {
    detail::need_argument("bytes", bytes);
    detail::with_params(params, [&](const auto& call) {
      *bytes = workspace_size(detail::plan_dispatch(call, detail::mode_of(*params)));
    });
  });
}

attn_status_t attn_parts(const attn_params_t* params,
                         void* workspace,
                         float** first,
                         size_t* floats) {
  return guarded([&] {
    detail::need_argument("first", first);
    detail::need_argument("floats", floats);
    detail::with_params(params, [&](auto call) {
      set_workspace(call, detail::plan_dispatch(call, detail::mode_of(*params)), workspace);
      const Parts parts = parts_of(call);
      *first = parts.first;
      *floats = parts.floats;
    });
  });
}

attn_status_t attn_counter_count(const attn_params_t* params, int* count) {
  return guarded([&] {
    detail::need_argument("count", count);
    detail::with_params(params, [&](const auto& call) {
      *count = detail::plan_dispatch(call, detail::mode_of(*params)).counter_cnt;
    });
  });
}

attn_status_t attn_prefill(const attn_params_t* params, void* workspace, size_t workspace_bytes) {
  return guarded([&] {
    detail::need_mode(params, ATTN_PREFILL, "ATTN_PREFILL");
    detail::with_params(
        params, [&](const auto& call) { run(call, Mode::kPrefill, workspace, workspace_bytes); });
  });
}

attn_status_t attn_decode(const attn_params_t* params, void* workspace, size_t workspace_bytes) {
  return guarded([&] {
    detail::need_mode(params, ATTN_DECODE, "ATTN_DECODE");
    detail::with_params(
        params, [&](const auto& call) { run(call, Mode::kDecode, workspace, workspace_bytes); });
  });
}

attn_status_t attn_write(const attn_params_t* params) {
  return guarded([&] {
    detail::need_mode(params, ATTN_WRITE, "ATTN_WRITE");
    detail::with_params(params, [&](const auto& call) { detail::dispatch(call, Mode::kWrite); });
  });
}

const char* attn_version() {
  static const std::string version = std::to_string(ATTN_VERSION_MAJOR) + '.' +
                                     std::to_string(ATTN_VERSION_MINOR) + '.' +
                                     std::to_string(ATTN_VERSION_PATCH);
  return version.c_str();
}

const char* attn_status_string(attn_status_t status) {
  switch (status) {
    case ATTN_SUCCESS:
      return "success";
    case ATTN_INVALID_ARGUMENT:
      return "invalid argument";
    case ATTN_NOT_SUPPORTED:
      return "not supported by a linked kernel";
    case ATTN_WORKSPACE_TOO_SMALL:
      return "workspace too small";
    case ATTN_NO_DEVICE:
      return "no GPU or no driver";
    case ATTN_NO_KERNEL_IMAGE:
      return "no linked kernel runs on this device";
    case ATTN_CUDA_ERROR:
      return "CUDA error";
    case ATTN_INTERNAL_ERROR:
      return "internal error";
  }
  return "unknown status";
}

const char* attn_last_error(void) { return last_error.message; }

const char* attn_last_error_field(void) { return last_error.field; }

}  // extern "C"

#pragma GCC visibility pop

}  // namespace attn
