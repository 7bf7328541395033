// SPDX-License-Identifier: Apache-2.0
// What a C caller gives, as C++ knows it. For src/attn_c.cpp; callers include attn/attn_c.h.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>

#include "attn/attention.h"
#include "attn/attn_c.h"
#include "attn/need.h"

namespace attn::detail {

inline void need_argument(const char* name, const void* pointer) {
  if (pointer == nullptr) {
    refuse_field(name, "is null: give an address");
  }
}

template <class Struct>
void need_struct(const char* name, const Struct* given) {
  need_argument(name, given);
  if (given->struct_size != sizeof(Struct)) {
    refuse_field("struct_size",
                 "of " + std::string(name) + " is " + std::to_string(given->struct_size) +
                     ": this library knows the struct by " + std::to_string(sizeof(Struct)) +
                     " bytes; set it to the sizeof of this library's attn/attn_c.h");
  }
}

// The C struct is AttentionParams behind the members that only C has.
template <class T>
AttentionParams<T> converted(const attn_params_t& from) {
  using Params = AttentionParams<T>;
  constexpr std::size_t kFirst = offsetof(attn_params_t, out);
  static_assert(std::is_trivially_copyable_v<Params> && std::is_standard_layout_v<Params>);
  static_assert(sizeof(attn_params_t) == kFirst + sizeof(Params) &&
                    offsetof(attn_params_t, stream) == kFirst + offsetof(Params, stream),
                "both structs come from one declaration");
  Params to;
  std::memcpy(static_cast<void*>(&to), reinterpret_cast<const char*>(&from) + kFirst, sizeof(to));
  if (to.cp_size == 0) {
    to.cp_size = 1;  // a struct of zeros means no context parallelism
  }
  if (to.cp_chunk == 0) {
    to.cp_chunk = 1;  // and keys interleaved one by one
  }
  return to;
}

inline Mode mode_of(const attn_params_t& params) {
  if (params.mode < ATTN_PREFILL || params.mode > ATTN_WRITE) {
    refuse_field(
        "mode",
        "is " + std::to_string(params.mode) + ": use ATTN_PREFILL, ATTN_DECODE or ATTN_WRITE");
  }
  return static_cast<Mode>(params.mode);
}

// Each function that launches is of one mode, which the functions that ask read from the params.
inline void need_mode(const attn_params_t* params, attn_mode_t mode, const char* name) {
  need_struct("params", params);
  if (params->mode != mode) {
    refuse_field("mode",
                 "is " + std::to_string(params->mode) + ": set it to " + std::to_string(mode) +
                     " (" + name + ") for this function");
  }
}

// Calls `call` with the AttentionParams that a C caller means.
template <class Call>
void with_params(const attn_params_t* params, Call&& call) {
  need_struct("params", params);
  switch (params->dtype) {
    case ATTN_F16:
      return call(converted<half>(*params));
    case ATTN_BF16:
      return call(converted<__nv_bfloat16>(*params));
    default:
      refuse_field("dtype", "is " + std::to_string(params->dtype) + ": use ATTN_F16 or ATTN_BF16");
  }
}

}  // namespace attn::detail
