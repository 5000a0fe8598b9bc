// What the CUDA kernels share: dtypes, strided views, warp reductions. No torch header.
//
// The kernels see plain structs passed by value. Each <op>.cuh also holds the one function that launches its kernels in
// order, over a callable launch(kernel, blocks, threads, params): the .cu passes a stream, the tests an emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../bilinear.h"

namespace draggan {
namespace cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// A feature map [B, C, h, w] or its gradient; strides in elements, any of them.
template <typename T>
struct FeatureView {
  T* data;
  int64_t batch_stride, channel_stride, row_stride, column_stride;

  __device__ __forceinline__ T* at(int batch, int channel, int row, int column) const {
    return data + batch * batch_stride + channel * channel_stride + row * row_stride + column * column_stride;
  }
};

// Sizes that every op has. N counts the points of one batch item.
struct Sizes {
  int batch, channels, cell_rows, cell_columns;  // B, C, h, w
  int height, width;                             // H, W of the image
};

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

__host__ __device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }

// At most this many cells lie under `pixels` neighbouring pixels, with those that they blend with.
__host__ __device__ __forceinline__ int cells_under(int pixels, int cells, int image_pixels) {
  return smaller(cells, static_cast<int>(ceil_div(static_cast<int64_t>(pixels - 1) * cells, image_pixels)) + 2);
}

// The source that another lane has computed, of an axis of that many cells. Dividing once per lane and handing the
// results around is much cheaper than dividing at every pixel.
__device__ __forceinline__ Source source_of_lane(const Source& mine, int lane, int cells) {
  const int cell = __shfl_sync(kAllLanes, mine.cell, lane);
  return {cell, smaller(cell + 1, cells - 1), __shfl_sync(kAllLanes, mine.fraction, lane)};
}

// Sums over the 32 lanes in an order that never changes; every lane gets the sum.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

}  // namespace cuda
}  // namespace draggan
