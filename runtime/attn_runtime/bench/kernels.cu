// SPDX-License-Identifier: Apache-2.0
// The benchmark's own kernels: input data, a pause, and what reading memory costs.
#include <cuda_runtime.h>

namespace {

__device__ unsigned mixed(unsigned x) {
  // An invertible hash: each input bit changes each output bit in about half of all cases.
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

__device__ unsigned short rounded_to_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ unsigned short rounded_to_f16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ long long first_index() {
  return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ long long stride() { return static_cast<long long>(gridDim.x) * blockDim.x; }

__device__ unsigned folded(uint4 x) { return x.x ^ x.y ^ x.z ^ x.w; }

__device__ uint4 streamed(const uint4* data) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(data));
  return x;
}

}  // namespace

struct FillArguments {
  unsigned short* data;  // [count]
  long long count;
  unsigned seed;
  int is_bf16;
};

// Normal values by Box and Muller: sqrt(-2 ln u) cos(2 pi v).
extern "C" __global__ void attn_bench_fill(FillArguments arguments) {
  for (long long i = first_index(); i < arguments.count; i += stride()) {
    const unsigned base =
        mixed(static_cast<unsigned>(i) ^ mixed(arguments.seed)) + static_cast<unsigned>(i >> 32);
    const float u = (mixed(base) + 0.5f) * 0x1p-32f;
    const float v = (mixed(base ^ 0x9e3779b9u) + 0.5f) * 0x1p-32f;
    const float x = sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    arguments.data[i] = arguments.is_bf16 ? rounded_to_bf16(x) : rounded_to_f16(x);
  }
}

struct PauseArguments {
  long long nanoseconds;
};

// One thread: the host fills the queue meanwhile, so that what follows runs back to back.
extern "C" __global__ void attn_bench_pause(PauseArguments arguments) {
  unsigned long long begin;
  unsigned long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - begin < static_cast<unsigned long long>(arguments.nanoseconds));
}

struct WriteArguments {
  uint4* data;  // [count]
  long long count;
  unsigned value;
};

// Leaves nothing in L2 of what was read before.
extern "C" __global__ void attn_bench_write(WriteArguments arguments) {
  const unsigned value = arguments.value;
  for (long long i = first_index(); i < arguments.count; i += stride()) {
    arguments.data[i] = make_uint4(value, value, value, value);
  }
}

struct ReadArguments {
  const uint4* data;  // [piece_count][piece_len]
  const int* order;   // [piece_count], which piece comes when; null: as they lie
  long long piece_count;
  int piece_len;  // in 16 bytes, a multiple of the threads of a CTA times kReadsInFlight
  unsigned* sink;
};

constexpr int kReadsInFlight = 8;

// A CTA reads one piece after the other. The sum is written if it is what no data gives by chance,
// so that the loads are not left out.
extern "C" __global__ void attn_bench_read(ReadArguments arguments) {
  unsigned sum = 0;
  const int step = static_cast<int>(blockDim.x) * kReadsInFlight;
  for (long long i = blockIdx.x; i < arguments.piece_count; i += gridDim.x) {
    const long long piece = arguments.order ? arguments.order[i] : i;
    const uint4* data = arguments.data + piece * arguments.piece_len + threadIdx.x;
    for (int begin = 0; begin < arguments.piece_len; begin += step) {
      uint4 values[kReadsInFlight];
#pragma unroll
      for (int j = 0; j < kReadsInFlight; ++j) {
        values[j] = streamed(data + begin + j * static_cast<int>(blockDim.x));
      }
#pragma unroll
      for (int j = 0; j < kReadsInFlight; ++j) {
        sum += folded(values[j]);
      }
    }
  }
  if (sum == 0x12345678u) {
    *arguments.sink = sum;
  }
}
