// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace attn::sm90 {

// When a consumer takes the exponentials of its scores.
enum class SoftmaxForm : int {
  kInPlace,     // after the maximum of the block is known; P replaces the scores
  kOptimistic,  // at once, and again if their sum exceeds the limit; P lies beside them, twice
};

}  // namespace attn::sm90
