#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "../checks.h"
#include "../ops.h"
#include "tensors.h"

namespace draggan::cpu {

// One picture of the batch, as the kernel sees it.
struct PointTracking {
  FeatureView feature;
  int image_height, image_width;
};

struct Nearest {
  float distance;
  int x, y;
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "point_tracking_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

std::tuple<Tensor, Tensor> point_tracking(const Tensor& feature, const Tensor& reference_feature,
                                          const Tensor& handle_points, const Tensor& active, int64_t r2,
                                          at::IntArrayRef image_size) {
  check_point_tracking(feature, reference_feature, handle_points, active, r2, image_size);
  const int64_t batch = feature.size(0), count = handle_points.size(1), channels = feature.size(1);
  const int height = image_size[0], width = image_size[1], radius = r2;
  const Tensor handles = as_floats(handle_points), references = as_floats(reference_feature);
  const Tensor is_active = active.contiguous();
  const Tensor moved = at::empty({batch, count, 2}, feature.options().dtype(at::kFloat));
  const Tensor distance = at::empty({batch, count}, feature.options().dtype(at::kFloat));
  const float* handle = handles.const_data_ptr<float>();
  const bool* takes_part = is_active.const_data_ptr<bool>();
  float *moved_to = moved.mutable_data_ptr<float>(), *distances = distance.mutable_data_ptr<float>();

  const Channels all = channel_block(0, channels, channels);
  const auto nearest_in_window = DRAGGAN_SELECT(nearest_in_window);
  at::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch, reference(all.padded, 0.0f);
    for (int64_t n = begin; n < end; ++n) {
      const float x = handle[2 * n], y = handle[2 * n + 1];
      moved_to[2 * n] = x, moved_to[2 * n + 1] = y;
      distances[n] = 0;
      if (!takes_part[n]) continue;
      distances[n] = std::numeric_limits<float>::infinity();
      if (!is_finite(x) || !is_finite(y)) continue;
      const int px = nearest_pixel(x), py = nearest_pixel(y);
      const int x_begin = std::max(px - radius, 0), x_end = std::min(px + radius + 1, width);
      const int y_begin = std::max(py - radius, 0), y_end = std::min(py + radius + 1, height);
      if (x_begin >= x_end || y_begin >= y_end) continue;
      const PointTracking p = {view_of(feature, n / count), height, width};
      const int cells =
          source_of(x_end - 1, p.feature.width, width).next - source_of(x_begin, p.feature.width, width).cell + 1;
      scratch.resize(2 * static_cast<size_t>(cells) * all.padded);
      std::copy_n(references.const_data_ptr<float>() + n * channels, channels, reference.data());
      const Nearest found = nearest_in_window(p, all, reference.data(), x_begin, x_end, y_begin, y_end, scratch.data());
      moved_to[2 * n] = static_cast<float>(found.x), moved_to[2 * n + 1] = static_cast<float>(found.y);
      distances[n] = found.distance;
    }
  });
  return {moved, distance};
}

}  // namespace draggan::cpu

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("point_tracking", TORCH_FN(draggan::cpu::point_tracking)); }
