// SPDX-License-Identifier: Apache-2.0
// The words that configurations are written in, and the integers of the API.
#pragma once

#ifndef __CUDACC_RTC__
#include <cstdint>
#endif

namespace attn {

#ifdef __CUDACC_RTC__
using int64_t = long long;  // NVRTC has no standard headers
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
using std::int64_t;
using std::uint32_t;
using std::uint64_t;
#endif

// Kernel families. A family serves its own architecture and later ones (Sm80: 8.0 and up).
namespace arch {
struct Sm70 {};
struct Sm75 {};
struct Sm80 {};
struct Sm90 {};
}  // namespace arch

// Where the keys and values of a sequence are found; params.h says how each kind is laid out.
enum class CacheType : int { kLinear = 0, kBlock = 1, kPaged = 2 };

// Which keys a query sees. Causal is aligned bottom-right: query i of n sees key j of m iff
// j <= i + m - n.
enum class Mask : int { kCausal = 0, kFull = 1 };

// What a kernel is for: prompts, one to eight new tokens of each sequence, or writing new keys and
// values into a cache.
enum class Mode : int { kPrefill = 0, kDecode = 1, kWrite = 2 };

// How the cache is quantised.
enum class KvType : int { kSame = 0, kInt8 = 1, kInt4 = 2, kE4m3 = 3 };

// How the keys of a sequence are spread over the ranks of a context-parallel group;
// attn/key_range.cuh has the formulas.
enum class KeySharding : int { kInterleaved = 0, kContiguous = 1, kZigZag = 2 };

// What a rank of a context-parallel group has at the end of a call.
//   kScaled     its own keys' share of the output: the caller adds up `out` over the ranks
//   kComplete   the output
//   kPartOnly   its part (cp_O, cp_ML): cp_fn and the merge are left out
enum class CpForm : int { kScaled = 0, kComplete = 1, kPartOnly = 2 };

// What the reduction merges, and into what.
//   kSplits         the splits of each row that has several, into the output
//   kSplitsToPart   the splits of each row, into this rank's part
//   kRanks          the parts of all ranks, into the output
enum class Merge : int { kSplits = 0, kSplitsToPart = 1, kRanks = 2 };

// A CUtensorMap as the driver encodes it (cuTensorMapEncodeTiled), opaque here.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// Called on the host between the attention kernel and the reduction, with
// AttentionParams::cp_fn_ctx.
using CpCallback = void (*)(void*);

}  // namespace attn
