// SPDX-License-Identifier: Apache-2.0
// What a decode launch says of its sequences: their tokens, and how many keys they have.
#pragma once

#include "attn/params.h"
#include "attn/sm80/decode_traits.cuh"

namespace attn::sm80 {

constexpr unsigned kWarp = 0xffffffffu;

// What the launch says of a sequence. One that is finished, or does not exist, has no tokens.
struct Lengths {
  Tokens tokens;
  int keys;  // of the whole sequence

  __device__ __forceinline__ bool operator!=(const Lengths& other) const {
    return tokens.begin != other.tokens.begin || tokens.count != other.tokens.count ||
           keys != other.keys;
  }
};

// How lengths are read. Past L1 is for those that the launch before this one may still write: a
// line that L1 keeps would hide what it writes.
enum class Reading { kThroughL1, kPastL1 };

template <Reading kReading, class Value>
__device__ __forceinline__ Value read(const Value* from) {
  return kReading == Reading::kPastL1 ? __ldcg(from) : *from;
}

// All loads go out together, with no branch between them: these are the first of the launch, and
// whatever follows waits for them.
template <Reading kReading = Reading::kThroughL1, class T>
__device__ __forceinline__ Lengths load_lengths(const AttentionParams<T>& params, int sequence) {
  const bool exists = sequence < params.batch_size;
  const int at = exists ? sequence : 0;
  const int first_query = read<kReading>(params.cu_q_len + at);
  const int last_query = read<kReading>(params.cu_q_len + at + 1);
  const int first_key = read<kReading>(params.cu_k_len + at);
  const int last_key = read<kReading>(params.cu_k_len + at + 1);
  bool has_tokens = exists;
  if (params.finished != nullptr) {
    has_tokens &= read<kReading>(reinterpret_cast<const char*>(params.finished) + at) == 0;
  }
  return {{first_query, has_tokens ? last_query - first_query : 0}, last_key - first_key};
}

// What memory says of at most 32 sequences, element i of each array in lane i (and the last one
// behind it): one request for each array, since all warps of a launch ask the same lines of L2.
struct LengthWords {
  int query;
  int key;
  int end_query;  // element 32, where there are as many sequences
  int end_key;
  int finished;  // not 0: it is

  // Past L1: the launch before this one may still write them.
  template <class T>
  __device__ __forceinline__ static LengthWords read(const AttentionParams<T>& params, int lane) {
    const int at = min(lane, params.batch_size);
    LengthWords words{__ldcg(params.cu_q_len + at), __ldcg(params.cu_k_len + at), 0, 0, 0};
    if (params.batch_size == 32) {
      words.end_query = __ldcg(params.cu_q_len + 32);
      words.end_key = __ldcg(params.cu_k_len + 32);
    }
    if (params.finished != nullptr) {
      const auto* const finished = reinterpret_cast<const char*>(params.finished);
      words.finished = __ldcg(finished + min(lane, params.batch_size - 1));
    }
    return words;
  }

  __device__ __forceinline__ bool operator!=(const LengthWords& other) const {
    return query != other.query || key != other.key || end_query != other.end_query ||
           end_key != other.end_key || finished != other.finished;
  }

  // The lengths of the sequence of each lane, or in all lanes those of the only one.
  template <class T>
  __device__ __forceinline__ Lengths lengths(const AttentionParams<T>& params,
                                             bool is_one,
                                             int lane) const {
    const int own = is_one ? 0 : lane;
    const int next = is_one ? 1 : lane + 1;
    const int first_query = __shfl_sync(kWarp, query, own);
    const int first_key = __shfl_sync(kWarp, key, own);
    int last_query = __shfl_sync(kWarp, query, next % 32);
    int last_key = __shfl_sync(kWarp, key, next % 32);
    if (next == 32) {
      last_query = end_query;
      last_key = end_key;
    }
    const bool is_done = __shfl_sync(kWarp, finished, own) != 0;
    const bool has_tokens = own < params.batch_size && !is_done;
    return {{first_query, has_tokens ? last_query - first_query : 0}, last_key - first_key};
  }
};

}  // namespace attn::sm80
