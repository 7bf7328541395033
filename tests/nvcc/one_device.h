// SPDX-License-Identifier: Apache-2.0
// What dispatch asks of the CUDA runtime on a machine of one device, which need not be there. Its
// attributes are each program's own: cudaDeviceGetAttribute.
#pragma once

#include <cuda_runtime_api.h>

extern "C" {

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
const char* cudaGetErrorName(cudaError_t) { return ""; }

}  // extern "C"
