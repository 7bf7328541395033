// SPDX-License-Identifier: Apache-2.0
// What dispatch says where no linked kernel fits a call: the field at fault, the name of the kernel
// that would, and the nearest one that there is.
#pragma once

#include <cstdlib>
#include <string>

#include "attn/cache_check.h"
#include "attn/dispatch.h"
#include "attn/need.h"

namespace attn::detail {

// The words of configuration names; cache_check.h has that of KvType.
inline const char* word_of(Element element) { return element == Element::kF16 ? "f16" : "bf16"; }

inline std::string word_of(CacheType cache) {
  switch (cache) {
    case CacheType::kLinear:
      return "linear";
    case CacheType::kBlock:
      return "block";
    case CacheType::kPaged:
      return "paged";
  }
  return std::to_string(static_cast<int>(cache));
}

inline std::string word_of(Mode mode) {
  switch (mode) {
    case Mode::kPrefill:
      return "prefill";
    case Mode::kDecode:
      return "decode";
    case Mode::kWrite:
      return "write";
  }
  return std::to_string(static_cast<int>(mode));
}

// The name under which attn-codegen emits a kernel for the traits; sm80 kernels run on every device
// from 8.0 on.
inline std::string name_of(const Traits& traits) {
  std::string name = word_of(traits.mode) + "_sm80_" + word_of(traits.element);
  if (traits.kv_type != KvType::kSame) {
    name += "_" + word_of(traits.kv_type);
  }
  name += "_d" + std::to_string(traits.size_per_head);
  if (traits.size_per_head_v != traits.size_per_head) {
    name += "_v" + std::to_string(traits.size_per_head_v);
  }
  name += "_" + word_of(traits.cache);
  return traits.mode == Mode::kWrite ? name : name + (traits.causal ? "_causal" : "_full");
}

// The first field of AttentionParams in which the two differ, and its value in `a`. "mode" is the
// function that was called, "dtype" the T of AttentionParams<T>.
struct Difference {
  const char* field;
  std::string value;
};

inline Difference difference(const Traits& a, const Traits& b) {
  if (a.mode != b.mode) {
    return {"mode", word_of(a.mode)};
  }
  if (a.kv_type != b.kv_type) {
    return {"kv_type", word_of(a.kv_type)};
  }
  if (a.cache != b.cache) {
    return {"cache", word_of(a.cache)};
  }
  if (a.causal != b.causal) {
    return {"causal", a.causal ? "true" : "false"};
  }
  if (a.size_per_head != b.size_per_head) {
    return {"size_per_head", std::to_string(a.size_per_head)};
  }
  if (a.size_per_head_v != b.size_per_head_v) {
    return {"size_per_head_v", std::to_string(a.size_per_head_v)};
  }
  return {"dtype", word_of(a.element)};
}

// How far a kernel is from what was asked for: widths by their steps of 16, words by how much would
// have to change around them.
inline int distance(const Traits& a, const Traits& b) {
  int cost = 0;
  cost += a.mode != b.mode ? 50000 : 0;
  cost += a.causal != b.causal ? 8000 : 0;
  cost += a.element != b.element ? 5000 : 0;
  cost += a.cache != b.cache ? 3000 : 0;
  cost += a.kv_type != b.kv_type ? 2000 : 0;
  cost += std::abs(a.size_per_head - b.size_per_head);
  cost += std::abs(a.size_per_head_v - b.size_per_head_v);
  return cost;
}

[[noreturn]] inline void refuse_traits(const Traits& traits) {
  need_word("kv_type", static_cast<int>(traits.kv_type), 3);
  need_word("cache", static_cast<int>(traits.cache), 2);
  need_positive("size_per_head", traits.size_per_head);
  const KernelRow* nearest = nullptr;
  for (const KernelRow& row : kernel_table()) {
    if (nearest == nullptr || distance(traits, row.traits) < distance(traits, nearest->traits)) {
      nearest = &row;
    }
  }
  if (nearest == nullptr) {
    throw Error(Status::kNotSupported,
                "",
                "no kernel is linked: emit some, and let ATTN_KERNELS choose them");
  }
  const Difference at_fault = difference(traits, nearest->traits);
  throw Error(Status::kNotSupported,
              at_fault.field,
              std::string(at_fault.field) + " is " + at_fault.value + ": " + name_of(traits) +
                  " is not linked, the nearest is " + nearest->describe().name +
                  "; attn-codegen explain NAME says whether it exists, attn-codegen emit --config "
                  "NAME emits it, and ATTN_KERNELS chooses what is linked");
}

inline std::string dotted(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

[[noreturn]] inline void refuse_device(const KernelRow& other, int device, int capability) {
  const Family& family = other.family;
  throw Error(Status::kNoKernelImage,
              "",
              "device " + std::to_string(device) + " has compute capability " + dotted(capability) +
                  ": the linked kernel " + other.describe().name + " runs on " +
                  dotted(family.first) +
                  (family.last == kAnyLater      ? " and later"
                   : family.last == family.first ? " alone"
                                                 : " to " + dotted(family.last)) +
                  "; emit and link one for this device");
}

}  // namespace attn::detail
