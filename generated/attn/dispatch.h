// SPDX-License-Identifier: Apache-2.0
// The table of the linked kernels, and how one is chosen from it. For the sources in src/; callers
// include attn/attention.h.
#pragma once

#include <type_traits>

#include "attn/attention.h"
#include "attn/check.h"
#include "attn/many_rows.h"

namespace attn::detail {

// The numbers are part of the C ABI.
enum class Element : int { kF16 = 0, kBf16 = 1 };

template <class T>
inline constexpr Element element_of = std::is_same_v<T, half> ? Element::kF16 : Element::kBf16;

// Compute capabilities that the kernels of a family run on, as 10 * major + minor.
struct Family {
  int number = 0;  // of two families that run on a device, the one with the higher number is taken
  int first = 0;
  int last = 0;

  bool runs_on(int capability) const { return first <= capability && capability <= last; }
};

inline constexpr int kAnyLater = 9999;

constexpr Family family_of(arch::Sm70) { return {70, 70, 74}; }
constexpr Family family_of(arch::Sm75) { return {75, 75, 79}; }
constexpr Family family_of(arch::Sm80) { return {80, 80, kAnyLater}; }
constexpr Family family_of(arch::Sm90) { return {90, 90, 90}; }

// What a kernel is chosen by, beside the device.
struct Traits {
  Mode mode = Mode::kPrefill;
  Element element = Element::kF16;
  KvType kv_type = KvType::kSame;
  CacheType cache = CacheType::kBlock;
  bool causal = true;
  int size_per_head = 0;
  int size_per_head_v = 0;
};

constexpr bool operator==(const Traits& a, const Traits& b) {
  return a.mode == b.mode && a.element == b.element && a.kv_type == b.kv_type &&
         a.cache == b.cache && a.causal == b.causal && a.size_per_head == b.size_per_head &&
         a.size_per_head_v == b.size_per_head_v;
}

// Only prefill has masks to choose from: decode is causal, whatever the params say.
template <class T>
Traits traits_of(const AttentionParams<T>& params, Mode mode) {
  Traits traits;
  traits.mode = mode;
  traits.element = element_of<T>;
  traits.kv_type = params.kv_type;
  traits.cache = params.cache;
  traits.causal = params.causal || mode != Mode::kPrefill;
  traits.size_per_head = params.size_per_head;
  traits.size_per_head_v =
      params.size_per_head_v == 0 ? params.size_per_head : params.size_per_head_v;
  return traits;
}

// How a prefill kernel takes decode calls of many rows (many_rows.h). Null: it does not.
struct ManyRows {
  // Of a call that the decode kernel could take.
  std::int64_t (*rank)(const void* params,
                       int max_split_k,
                       const DeviceLimits& device,
                       const KernelInfo& decode);
  // With memory for the decode kernel's plan, too.
  Plan (*plan)(const void* params, const Plan& decode);
  void (*invoke)(const void* params);
};

// A linked kernel. `params` are AttentionParams of its element type.
struct KernelRow {
  Traits traits;
  Family family;
  KernelInfo (*describe)();
  KernelInfo (*prepare)();
  void (*check)(const void* params);
  // Of rows that differ in their tiles alone, the one of least rank takes a call, planned with at
  // most max_split_k splits (choose.h).
  std::int64_t (*rank)(const void* params, int max_split_k, const DeviceLimits& device);
  Plan (*plan)(const void* params);
  void (*invoke)(const void* params);
  ManyRows many_rows;
};

struct KernelTable {
  const KernelRow* rows;
  int count;

  const KernelRow* begin() const { return rows; }
  const KernelRow* end() const { return rows + count; }
};

// The kernels of attn/emitted.h, sorted by name.
KernelTable kernel_table();

// The compute capability of a device.
int capability_of(int device);

int current_device();

// A kernel for params with these traits, whatever the device (one of the latest family). Throws
// Error where none is linked.
const KernelRow& kernel_for(const Traits& traits);

// The kernel that takes a call on a device, when it is planned with at most max_split_k splits.
// Throws Error where none is linked.
const KernelRow& kernel_for(const Traits& traits, int device, const void* params, int max_split_k);

template <class T>
const KernelRow& kernel_for(const AttentionParams<T>& params,
                            Mode mode,
                            int device,
                            int max_split_k) {
  return kernel_for(traits_of(params, mode), device, &params, max_split_k);
}

// The device itself. Throws Error where there is no such device.
int checked_device(int device);

// A kernel that takes a call on the current device.
class TakenCall {
 public:
  explicit TakenCall(const KernelRow& row) : row_(&row) {}

  // Of many rows, which a decode kernel could take.
  TakenCall(const KernelRow& row, const KernelRow& decode) : row_(&row), decode_(&decode) {}

  const KernelRow& row() const { return *row_; }

  Plan plan(const void* params) const {
    return decode_ == nullptr ? row_->plan(params)
                              : row_->many_rows.plan(params, decode_->plan(params));
  }

  void invoke(const void* params) const {
    decode_ == nullptr ? row_->invoke(params) : row_->many_rows.invoke(params);
  }

 private:
  const KernelRow* row_;
  const KernelRow* decode_ = nullptr;
};

// Who takes a call on the current device, planned with at most max_split_k splits. Throws Error
// where no kernel is linked that does.
template <class T>
TakenCall take(const AttentionParams<T>& params, Mode mode, int max_split_k);

// Nothing to do: the other fields may hold anything.
template <class T>
bool is_empty(const AttentionParams<T>& params) {
  return params.token_num == 0 || params.batch_size == 0;
}

// The same, but what is wrong with the call is told before the device is asked.
template <class T>
TakenCall take_checked(const AttentionParams<T>& params, Mode mode, int max_split_k) {
  kernel_for(traits_of(params, mode)).check(&params);
  return take(params, mode, max_split_k);
}

// And how it is cut.
struct PlannedCall {
  TakenCall call;
  Plan plan;
};

// A call that has so many bytes of workspace. Where it would like more, and says nothing of how it
// is split, max_split_k becomes the most splits that there is room for.
template <class T>
PlannedCall plan_within(AttentionParams<T>& params, Mode mode, std::size_t bytes);

// Makes a device current, and the former one again at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int former_;
};

}  // namespace attn::detail
