// SPDX-License-Identifier: Apache-2.0
// Which sequence a new token belongs to, and where that begins and ends.
#pragma once

#include "attn/params.h"

namespace attn::sm80 {

// An entry of running sums and the next.
struct Ends {
  int begin;
  int end;
};

// Volatile, so that the loads stand where they are written: the compiler puts those of the keys
// behind the test of the tokens, and each row then waits for one latency more.
__device__ __forceinline__ Ends load_ends(const int* sums) {
  Ends ends;
  asm volatile("ld.global.s32 %0, [%1];\n" : "=r"(ends.begin) : "l"(sums));
  asm volatile("ld.global.s32 %0, [%1 + 4];\n" : "=r"(ends.end) : "l"(sums));
  return ends;
}

// A sequence and where it begins and ends, in new tokens and in keys.
struct WriteSequence {
  int sequence;
  int q_begin;
  int q_end;
  int k_begin;
  int k_end;

  template <class T>
  __device__ __forceinline__ static WriteSequence load(const AttentionParams<T>& params,
                                                       int sequence) {
    const Ends queries = load_ends(params.cu_q_len + sequence);
    const Ends keys = load_ends(params.cu_k_len + sequence);
    return {sequence, queries.begin, queries.end, keys.begin, keys.end};
  }

  __device__ __forceinline__ bool has(int token) const { return q_begin <= token && token < q_end; }
};

// The sequence of a token; one that has not got it where no sequence has. The first guess is right
// where all sequences have as many tokens.
template <class T>
__device__ __forceinline__ WriteSequence sequence_of(const AttentionParams<T>& params, int token) {
  const float mean = static_cast<float>(params.batch_size) / static_cast<float>(params.token_num);
  const int guess = min(static_cast<int>((token + 0.5f) * mean), params.batch_size - 1);
  const WriteSequence guessed = WriteSequence::load(params, guess);
  if (guessed.has(token)) {
    return guessed;
  }
  // The first that ends behind the token.
  int low = 0;
  int high = params.batch_size - 1;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (params.cu_q_len[middle + 1] <= token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return WriteSequence::load(params, low);
}

}  // namespace attn::sm80
