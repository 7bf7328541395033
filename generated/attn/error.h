// SPDX-License-Identifier: Apache-2.0
// How host code reports a call that cannot run: one exception type, which names the field at fault.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace attn {

// What the C ABI returns. The numbers are part of the ABI.
enum class Status : int {
  kSuccess = 0,
  kInvalidArgument,
  kNotSupported,
  kWorkspaceTooSmall,
  kNoDevice,
  kNoKernelImage,
  kCudaError,
  kInternalError,
};

// The message says what is wrong, what was given, what is allowed and what to do next.
class __attribute__((visibility("default"))) Error : public std::runtime_error {
 public:
  Error(Status code, std::string field, const std::string& message)
      : std::runtime_error(message), code_(code), field_(std::move(field)) {}

  Status code() const noexcept { return code_; }

  // The member of AttentionParams at fault; empty where there is none.
  const std::string& field() const noexcept { return field_; }

 private:
  Status code_;
  std::string field_;
};

}  // namespace attn
