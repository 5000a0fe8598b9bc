// Every host function of the compiled library. What the ops compute is written in kernels/reference.py.
//
// feature: [B, C, h, w], float32, bfloat16 or float16, any strides; channels-last is the fast path. Arithmetic is
// float32. Points: [B, N, 2], (x, y) in image pixels. active: [B, N] bool. image_size: {H, W}. Radii in image pixels.
// Results: loss [B] float32; grad_feature like feature (same shape, dtype and, where dense, strides).
// Bad arguments throw c10::Error with a sentence that names the argument (checks.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

namespace draggan {

using at::Tensor;

// One declaration for each device: csrc/cpu/<op>.cpp defines and registers the first, csrc/cuda/<op>.cu the second.
#define DRAGGAN_DECLARE_OPS(device)                                                                                 \
  namespace device {                                                                                                \
  /* -> loss [B], grad_feature [B, C, h, w] */                                                                      \
  std::tuple<Tensor, Tensor> motion_supervision(const Tensor& feature, const Tensor& handle_points,                 \
                                                const Tensor& target_points, const Tensor& active, int64_t r1,      \
                                                at::IntArrayRef image_size);                                        \
  /* the same for crops of a larger image: crop_origin [B, 2] int64 is the pixel (x, y) of whole_size, {H, W}, that \
     each begins at */                                                                                              \
  std::tuple<Tensor, Tensor> motion_supervision_on_crops(const Tensor& feature, const Tensor& handle_points,        \
                                                         const Tensor& target_points, const Tensor& active,         \
                                                         int64_t r1, at::IntArrayRef image_size,                    \
                                                         const Tensor& crop_origin, at::IntArrayRef whole_size);    \
  /* reference_feature [B, N, C] -> handle_points [B, N, 2] float32, distance [B, N] float32 */                     \
  std::tuple<Tensor, Tensor> point_tracking(const Tensor& feature, const Tensor& reference_feature,                 \
                                            const Tensor& handle_points, const Tensor& active, int64_t r2,          \
                                            at::IntArrayRef image_size);                                            \
  /* feature0 [B, C, h, w], movable_mask [B, H, W] in [0, 1] -> loss [B], grad_feature [B, C, h, w] */              \
  std::tuple<Tensor, Tensor> mask_loss(const Tensor& feature, const Tensor& feature0, const Tensor& movable_mask,   \
                                       at::IntArrayRef image_size);                                                 \
  /* points [B, N, 2] -> [B, N, C] float32 */                                                                       \
  Tensor sample_feature(const Tensor& feature, const Tensor& points, at::IntArrayRef image_size);                   \
  }

DRAGGAN_DECLARE_OPS(cpu)
DRAGGAN_DECLARE_OPS(cuda)
#undef DRAGGAN_DECLARE_OPS

}  // namespace draggan
