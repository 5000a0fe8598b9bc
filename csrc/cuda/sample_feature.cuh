// sample_feature on CUDA: one launch, one block per point, a thread per channel. See kernels/reference.py.
//
// Floor: 4·C elements read and 4·C bytes written per point (5 KiB at C = 256 in float32): latency only.
#pragma once

#include "common.cuh"

namespace draggan {
namespace cuda {

template <typename T>
struct SampleFeatureParams {
  Sizes sizes;
  int points;                    // N
  FeatureView<const T> feature;  // [B, C, h, w]
  const float* points_xy;        // [B, N, 2]
  float* sampled;                // [B, N, C]
};

constexpr int kSampleThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kSampleThreads) sample_feature_kernel(const SampleFeatureParams<T> p) {
  const Sizes& s = p.sizes;
  const int point = static_cast<int>(blockIdx.x);
  const int batch = point / p.points;
  const float point_x = p.points_xy[2 * point], point_y = p.points_xy[2 * point + 1];
  int x = -1, y = -1;  // a point that is nowhere is outside the image: zeros
  if (is_finite(point_x) && is_finite(point_y)) {
    x = nearest_pixel(point_x);
    y = nearest_pixel(point_y);
  }
  const bool inside = x >= 0 && x < s.width && y >= 0 && y < s.height;
  const Source column = source_of(inside ? x : 0, s.cell_columns, s.width);
  const Source row = source_of(inside ? y : 0, s.cell_rows, s.height);
  for (int channel = static_cast<int>(threadIdx.x); channel < s.channels; channel += kSampleThreads) {
    const auto cell = [&](int r, int c) { return to_float(*p.feature.at(batch, channel, r, c)); };
    const float upper = blend(cell(row.cell, column.cell), cell(row.cell, column.next), column.fraction);
    const float lower = blend(cell(row.next, column.cell), cell(row.next, column.next), column.fraction);
    p.sampled[static_cast<int64_t>(point) * s.channels + channel] = inside ? blend(upper, lower, row.fraction) : 0.0f;
  }
}

template <typename T, typename Launch>
void launch_sample_feature(const SampleFeatureParams<T>& p, const Launch& launch) {
  launch(sample_feature_kernel<T>, static_cast<int64_t>(p.sizes.batch) * p.points, kSampleThreads, p);
}

}  // namespace cuda
}  // namespace draggan
