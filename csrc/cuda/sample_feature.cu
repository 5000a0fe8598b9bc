#include <torch/library.h>

#include "../checks.h"
#include "../ops.h"
#include "launch.h"
#include "sample_feature.cuh"

namespace draggan {
namespace cuda {

Tensor sample_feature(const Tensor& feature, const Tensor& points, at::IntArrayRef image_size) {
  check_sample_feature(feature, points, image_size);
  const Sizes sizes = sizes_of(feature, image_size, points.size(1));
  const c10::cuda::CUDAGuard guard(feature.device());
  const Tensor points_xy = as_floats(points);
  const Tensor sampled = empty_floats({sizes.batch, points.size(1), sizes.channels}, feature);
  with_element(feature, [&](auto element) {
    using T = typename decltype(element)::type;
    SampleFeatureParams<T> p;
    p.sizes = sizes;
    p.points = static_cast<int>(points.size(1));
    p.feature = view_of<T>(feature);
    p.points_xy = points_xy.const_data_ptr<float>();
    p.sampled = sampled.mutable_data_ptr<float>();
    launch_sample_feature(p, on_current_stream());
  });
  return sampled;
}

}  // namespace cuda
}  // namespace draggan

TORCH_LIBRARY_IMPL(draggan_fast_native, CUDA, m) { m.impl("sample_feature", TORCH_FN(draggan::cuda::sample_feature)); }
