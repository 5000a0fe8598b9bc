#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../ops.h"
#include "launch.h"
#include "motion_supervision.cuh"

namespace draggan {
namespace cuda {

namespace {

// crop_origin: null where the features are of the whole image, whole_size.
std::tuple<Tensor, Tensor> supervise(const Tensor& feature, const Tensor& handle_points, const Tensor& target_points,
                                     const Tensor& active, int64_t r1, at::IntArrayRef image_size,
                                     const int64_t* crop_origin, at::IntArrayRef whole_size) {
  const int64_t points = handle_points.size(1);
  const Sizes sizes = sizes_of(feature, image_size, points);
  const int radius = static_cast<int>(r1);
  const c10::cuda::CUDAGuard guard(feature.device());
  const Tensor handles = as_floats(handle_points), targets = as_floats(target_points);
  const Tensor takes_part = active.contiguous();
  const Tensor loss = empty_floats({sizes.batch}, feature);
  const Tensor grad = at::empty_like(feature);
  // Scratch: its size follows from shapes and r1 alone, so a captured graph holds the same memory at every replay.
  const int64_t all_points = sizes.batch * points, rows = all_points * patch_rows(sizes, radius);
  const Tensor windows = empty_ints({all_points, sizeof(PatchWindow) / sizeof(int)}, feature);
  const Tensor patch_rows_of = empty_ints({rows, sizeof(PatchRow) / sizeof(int)}, feature);
  const Tensor row_loss = empty_floats({rows, channel_chunks(sizes)}, feature);
  const Tensor row_gradient = empty_floats({rows, patch_columns(sizes, radius), sizes.channels}, feature);
  with_element(feature, [&](auto element) {
    using T = typename decltype(element)::type;
    MotionSupervisionParams<T> p;
    p.sizes = sizes;
    p.points = static_cast<int>(points);
    p.radius = radius;
    p.feature = view_of<T>(feature);
    p.handle_points = handles.const_data_ptr<float>();
    p.target_points = targets.const_data_ptr<float>();
    p.active = takes_part.const_data_ptr<bool>();
    p.crop_origin = crop_origin;
    p.whole_height = static_cast<int>(whole_size[0]);
    p.whole_width = static_cast<int>(whole_size[1]);
    p.grad_feature = mutable_view_of<T>(grad);
    p.loss = loss.mutable_data_ptr<float>();
    p.windows = reinterpret_cast<PatchWindow*>(windows.mutable_data_ptr<int>());
    p.rows = reinterpret_cast<PatchRow*>(patch_rows_of.mutable_data_ptr<int>());
    p.row_loss = row_loss.mutable_data_ptr<float>();
    p.row_gradient = row_gradient.mutable_data_ptr<float>();
    launch_motion_supervision(p, on_current_stream());
  });
  return {loss, grad};
}

}  // namespace

std::tuple<Tensor, Tensor> motion_supervision(const Tensor& feature, const Tensor& handle_points,
                                              const Tensor& target_points, const Tensor& active, int64_t r1,
                                              at::IntArrayRef image_size) {
  check_motion_supervision(feature, handle_points, target_points, active, r1, image_size);
  return supervise(feature, handle_points, target_points, active, r1, image_size, nullptr, image_size);
}

std::tuple<Tensor, Tensor> motion_supervision_on_crops(const Tensor& feature, const Tensor& handle_points,
                                                       const Tensor& target_points, const Tensor& active, int64_t r1,
                                                       at::IntArrayRef image_size, const Tensor& crop_origin,
                                                       at::IntArrayRef whole_size) {
  check_motion_supervision(feature, handle_points, target_points, active, r1, image_size);
  check_crops(feature, image_size, crop_origin, whole_size);
  const c10::cuda::CUDAGuard guard(feature.device());
  const Tensor origins = crop_origin.contiguous();
  return supervise(feature, handle_points, target_points, active, r1, image_size, origins.const_data_ptr<int64_t>(),
                   whole_size);
}

}  // namespace cuda
}  // namespace draggan

TORCH_LIBRARY_IMPL(draggan_fast_native, CUDA, m) {
  m.impl("motion_supervision", TORCH_FN(draggan::cuda::motion_supervision));
  m.impl("motion_supervision_on_crops", TORCH_FN(draggan::cuda::motion_supervision_on_crops));
}
