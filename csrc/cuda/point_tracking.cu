#include <torch/library.h>

#include "../checks.h"
#include "../ops.h"
#include "launch.h"
#include "point_tracking.cuh"

namespace draggan {
namespace cuda {

std::tuple<Tensor, Tensor> point_tracking(const Tensor& feature, const Tensor& reference_feature,
                                          const Tensor& handle_points, const Tensor& active, int64_t r2,
                                          at::IntArrayRef image_size) {
  check_point_tracking(feature, reference_feature, handle_points, active, r2, image_size);
  const int64_t points = handle_points.size(1);
  const Sizes sizes = sizes_of(feature, image_size, points);
  const int radius = static_cast<int>(r2);
  const c10::cuda::CUDAGuard guard(feature.device());
  const Tensor reference = as_floats(reference_feature), handles = as_floats(handle_points);
  const Tensor takes_part = active.contiguous();
  const Tensor moved = empty_floats({sizes.batch, points, 2}, feature);
  const Tensor distance = empty_floats({sizes.batch, points}, feature);
  const int64_t candidates = sizes.batch * points * track_candidates(sizes, radius);
  const Tensor best_distance = empty_floats({candidates}, feature), best_pixel = empty_ints({candidates}, feature);
  with_element(feature, [&](auto element) {
    using T = typename decltype(element)::type;
    PointTrackingParams<T> p;
    p.sizes = sizes;
    p.points = static_cast<int>(points);
    p.radius = radius;
    p.feature = view_of<T>(feature);
    p.reference = reference.const_data_ptr<float>();
    p.handle_points = handles.const_data_ptr<float>();
    p.active = takes_part.const_data_ptr<bool>();
    p.moved = moved.mutable_data_ptr<float>();
    p.distance = distance.mutable_data_ptr<float>();
    p.best_distance = best_distance.mutable_data_ptr<float>();
    p.best_pixel = best_pixel.mutable_data_ptr<int>();
    launch_point_tracking(p, on_current_stream());
  });
  return {moved, distance};
}

}  // namespace cuda
}  // namespace draggan

TORCH_LIBRARY_IMPL(draggan_fast_native, CUDA, m) { m.impl("point_tracking", TORCH_FN(draggan::cuda::point_tracking)); }
