// What the ops ask of their arguments, in full sentences; shared by all devices. draggan_fast/ops.py asks the same in
// Python first, so these are met only by direct calls of torch.ops.draggan_fast_native.*.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "bilinear.h"

namespace draggan {

inline void check_feature(const at::Tensor& feature, at::IntArrayRef image_size) {
  TORCH_CHECK(feature.dim() == 4, "feature must have the shape [B, C, h, w], not ", feature.sizes(), ".");
  const auto dtype = feature.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "feature must be float32, bfloat16 or float16, not ", dtype, ".");
  for (int axis = 1; axis < 4; ++axis) {
    TORCH_CHECK(feature.size(axis) >= 1, "feature must not be empty, but its shape is ", feature.sizes(), ".");
  }
  TORCH_CHECK(feature.size(2) <= kMaxAxis && feature.size(3) <= kMaxAxis, "feature may be at most ", kMaxAxis,
              " cells high and wide, but its shape is ", feature.sizes(), ".");
  TORCH_CHECK(image_size.size() == 2 && image_size[0] >= 1 && image_size[1] >= 1 && image_size[0] <= kMaxAxis &&
                  image_size[1] <= kMaxAxis,
              "image_size must be two numbers (H, W) from 1 to ", kMaxAxis, ", not ", image_size, ".");
}

inline void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& feature) {
  TORCH_CHECK(tensor.device() == feature.device(), name, " is on ", tensor.device(), ", the feature on ",
              feature.device(), ".");
}

inline void check_points(const char* name, const at::Tensor& points, const at::Tensor& feature) {
  TORCH_CHECK(points.dim() == 3 && points.size(0) == feature.size(0) && points.size(2) == 2, name,
              " must have the shape [", feature.size(0), ", N, 2], not ", points.sizes(), ".");
  TORCH_CHECK(points.is_floating_point(), name, " must be a float tensor, not ", points.scalar_type(), ".");
  check_device(name, points, feature);
}

inline void check_active(const at::Tensor& active, const at::Tensor& points) {
  TORCH_CHECK(active.scalar_type() == at::kBool && active.sizes() == points.sizes().slice(0, 2),
              "active must be a bool tensor of the shape ", points.sizes().slice(0, 2), ", not ", active.scalar_type(),
              " ", active.sizes(), ".");
  check_device("active", active, points);
}

inline void check_radius(const char* name, int64_t radius, int64_t least) {
  TORCH_CHECK(radius >= least && radius <= kMaxReach, name, " must be an integer from ", least, " to ", kMaxReach,
              " (pixels), not ", radius, ".");
}

inline void check_motion_supervision(const at::Tensor& feature, const at::Tensor& handle_points,
                                     const at::Tensor& target_points, const at::Tensor& active, int64_t r1,
                                     at::IntArrayRef image_size) {
  check_feature(feature, image_size);
  check_points("handle_points", handle_points, feature);
  check_points("target_points", target_points, feature);
  TORCH_CHECK(target_points.sizes() == handle_points.sizes(), "target_points must have the shape of handle_points, ",
              handle_points.sizes(), ", not ", target_points.sizes(), ".");
  check_active(active, handle_points);
  check_radius("r1", r1, 1);
}

inline void check_crops(const at::Tensor& feature, at::IntArrayRef image_size, const at::Tensor& crop_origin,
                        at::IntArrayRef whole_size) {
  TORCH_CHECK(crop_origin.dim() == 2 && crop_origin.size(0) == feature.size(0) && crop_origin.size(1) == 2 &&
                  crop_origin.scalar_type() == at::kLong,
              "crop_origin must be an int64 tensor of the shape [", feature.size(0), ", 2], not ",
              crop_origin.scalar_type(), " ", crop_origin.sizes(), ".");
  check_device("crop_origin", crop_origin, feature);
  TORCH_CHECK(whole_size.size() == 2 && whole_size[0] >= image_size[0] && whole_size[1] >= image_size[1] &&
                  whole_size[0] <= kMaxAxis && whole_size[1] <= kMaxAxis,
              "whole_size must be two numbers (H, W), at least image_size ", image_size, " and at most ", kMaxAxis,
              ", not ", whole_size, ".");
  if (!crop_origin.is_cpu()) return;  // elsewhere looking at the values would wait for the device
  const at::Tensor origins = crop_origin.contiguous();
  for (int64_t i = 0; i < origins.numel(); ++i) {
    const int64_t first = origins.const_data_ptr<int64_t>()[i], axis = i % 2 == 0 ? 1 : 0;
    TORCH_CHECK(first >= 0 && first <= whole_size[axis] - image_size[axis],
                "crop_origin must leave every crop inside the whole image, but one begins at ", first, ".");
  }
}

inline void check_point_tracking(const at::Tensor& feature, const at::Tensor& reference_feature,
                                 const at::Tensor& handle_points, const at::Tensor& active, int64_t r2,
                                 at::IntArrayRef image_size) {
  check_feature(feature, image_size);
  check_points("handle_points", handle_points, feature);
  TORCH_CHECK(reference_feature.dim() == 3 && reference_feature.size(0) == feature.size(0) &&
                  reference_feature.size(1) == handle_points.size(1) && reference_feature.size(2) == feature.size(1),
              "reference_feature must have the shape [", feature.size(0), ", ", handle_points.size(1), ", ",
              feature.size(1), "], not ", reference_feature.sizes(), ".");
  TORCH_CHECK(reference_feature.is_floating_point(), "reference_feature must be a float tensor, not ",
              reference_feature.scalar_type(), ".");
  check_device("reference_feature", reference_feature, feature);
  check_active(active, handle_points);
  check_radius("r2", r2, 0);
}

inline void check_mask_loss(const at::Tensor& feature, const at::Tensor& feature0, const at::Tensor& movable_mask,
                            at::IntArrayRef image_size) {
  check_feature(feature, image_size);
  TORCH_CHECK(feature0.sizes() == feature.sizes(), "feature0 must have the feature's shape ", feature.sizes(), ", not ",
              feature0.sizes(), ".");
  TORCH_CHECK(feature0.scalar_type() == feature.scalar_type(), "feature0 must have the feature's dtype, ",
              feature.scalar_type(), ", not ", feature0.scalar_type(), ".");
  TORCH_CHECK(movable_mask.dim() == 3 && movable_mask.size(0) == feature.size(0) &&
                  movable_mask.size(1) == image_size[0] && movable_mask.size(2) == image_size[1],
              "movable_mask must have the shape [", feature.size(0), ", ", image_size[0], ", ", image_size[1],
              "], not ", movable_mask.sizes(), ".");
  check_device("feature0", feature0, feature);
  check_device("movable_mask", movable_mask, feature);
}

inline void check_sample_feature(const at::Tensor& feature, const at::Tensor& points, at::IntArrayRef image_size) {
  check_feature(feature, image_size);
  check_points("points", points, feature);
}

}  // namespace draggan
