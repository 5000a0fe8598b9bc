#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../ops.h"
#include "tensors.h"

namespace draggan::cpu {

// One pixel of U, all channels.
struct SampleFeature {
  FeatureView feature;
  int image_height, image_width;
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "sample_feature_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

Tensor sample_feature(const Tensor& feature, const Tensor& points, at::IntArrayRef image_size) {
  check_sample_feature(feature, points, image_size);
  const int64_t batch = feature.size(0), count = points.size(1), channels = feature.size(1);
  const Tensor values = at::empty({batch, count, channels}, feature.options().dtype(at::kFloat));
  const Tensor xy = as_floats(points);
  const float* coordinates = xy.const_data_ptr<float>();
  float* out = values.mutable_data_ptr<float>();
  const Channels all = channel_block(0, channels, channels);
  const auto sample = DRAGGAN_SELECT(sample_pixel);
  at::parallel_for(0, batch * count, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(4 * static_cast<size_t>(all.padded));
    for (int64_t n = begin; n < end; ++n) {
      const SampleFeature p = {view_of(feature, n / count), static_cast<int>(image_size[0]),
                               static_cast<int>(image_size[1])};
      sample(p, all, coordinates[2 * n], coordinates[2 * n + 1], scratch.data(), out + n * channels);
    }
  });
  return values;
}

}  // namespace draggan::cpu

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("sample_feature", TORCH_FN(draggan::cpu::sample_feature)); }
