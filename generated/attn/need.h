// SPDX-License-Identifier: Apache-2.0
// Refusals of single values, each by the field that holds it.
#pragma once

#include <cstdint>
#include <string>

#include "attn/error.h"

namespace attn::detail {

[[noreturn]] inline void refuse_field(const char* field,
                                      const std::string& what,
                                      Status code = Status::kInvalidArgument) {
  throw Error(code, field, std::string(field) + " " + what);
}

inline void need_pointer(const char* field, const void* pointer) {
  if (pointer == nullptr) {
    refuse_field(field, "is null: give a device address");
  }
}

inline void need_multiple_of(const char* field,
                             const void* pointer,
                             unsigned bytes,
                             const char* why) {
  need_pointer(field, pointer);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % bytes != 0) {
    refuse_field(field,
                 "is address " + std::to_string(address) + ": it must be a multiple of " +
                     std::to_string(bytes) + ", since " + why);
  }
}

inline void need_aligned(const char* field, const void* pointer) {
  need_multiple_of(field, pointer, 16, "kernels read and write 16 bytes at a time");
}

inline void need_stride(const char* field, std::int64_t stride, int multiple = 8) {
  if (stride % multiple != 0) {
    refuse_field(field,
                 "is " + std::to_string(stride) + " elements: it must be a multiple of " +
                     std::to_string(multiple) + ", so that every row is aligned to 16 bytes");
  }
}

// Of `count` tokens, whose rows lie apart: a stride that nobody has set is none.
inline void need_token_stride(const char* field,
                              std::int64_t stride,
                              std::int64_t count,
                              int multiple = 8) {
  need_stride(field, stride, multiple);
  if (stride == 0 && count > 1) {
    refuse_field(field, "is 0: give the elements from the row of one token to that of the next");
  }
}

inline void need_pairs(const char* field, const void* pairs) {
  need_multiple_of(field, pairs, 4, "a (scale, zero) pair is read by one load of 4 bytes");
}

inline void need_pair_stride(const char* field, std::int64_t stride) {
  if (stride % 2 != 0) {
    refuse_field(field,
                 "is " + std::to_string(stride) +
                     " elements: it must be even, so that every pair is aligned to 4 bytes");
  }
}

inline void need_positive(const char* field, std::int64_t value) {
  if (value <= 0) {
    refuse_field(field, "is " + std::to_string(value) + ": it must be above 0");
  }
}

inline void need_equal(const char* field, int got, int expected) {
  if (got != expected) {
    refuse_field(field,
                 "is " + std::to_string(got) + ", but this kernel was compiled for " +
                     std::to_string(expected) + ": take the kernel of your head size");
  }
}

inline void need_word(const char* field, int value, int last) {
  if (value < 0 || value > last) {
    refuse_field(
        field,
        "is " + std::to_string(value) + ": it must be an enumerator, 0 to " + std::to_string(last));
  }
}

}  // namespace attn::detail
