// The CUDA ops under the emulator, as a C library for ctypes. Compiled with -include emulator.h, this folder first.
//
// Every function takes the dtype of the feature (0 float32, 1 float16, 2 bfloat16), an order of threads and blocks
// (emulator.h), the numbers {B, C, h, w, H, W, N, radius} and pointers, views with their four strides; it returns null,
// or what went wrong.
#include "csrc/cuda/mask_loss.cuh"
#include "csrc/cuda/motion_supervision.cuh"
#include "csrc/cuda/point_tracking.cuh"
#include "csrc/cuda/sample_feature.cuh"

namespace {

using draggan::cuda::FeatureView;
using draggan::cuda::Sizes;

struct View {
  void* data;
  int64_t strides[4];
};

template <typename T>
FeatureView<T> typed(const View& view) {
  return {static_cast<T*>(view.data), view.strides[0], view.strides[1], view.strides[2], view.strides[3]};
}

Sizes sizes_of(const int* numbers) { return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]}; }

template <typename Op>
const char* guarded(int dtype, const Op& op) {
  static std::string problem;
  try {
    if (dtype == 0) op(float{});
    if (dtype == 1) op(__half{});
    if (dtype == 2) op(__nv_bfloat16{});
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}

}  // namespace

extern "C" {

// What the scratch buffers are sized by.
int patch_rows(const int* numbers) { return draggan::cuda::patch_rows(sizes_of(numbers), numbers[7]); }
int patch_columns(const int* numbers) { return draggan::cuda::patch_columns(sizes_of(numbers), numbers[7]); }
int channel_chunks(const int* numbers) { return draggan::cuda::channel_chunks(sizes_of(numbers)); }
int track_candidates(const int* numbers) { return draggan::cuda::track_candidates(sizes_of(numbers), numbers[7]); }
int mask_blocks(const int* numbers) { return draggan::cuda::mask_blocks(sizes_of(numbers)); }
int patch_window_bytes() { return sizeof(draggan::cuda::PatchWindow); }
int patch_row_bytes() { return sizeof(draggan::cuda::PatchRow); }

const char* sample_feature(int dtype, int order, const int* numbers, View feature, const float* points,
                           float* sampled) {
  return guarded(dtype, [&](auto type) {
    using T = decltype(type);
    const draggan::cuda::SampleFeatureParams<T> p = {sizes_of(numbers), numbers[6], typed<const T>(feature), points,
                                                     sampled};
    draggan::cuda::launch_sample_feature(p, emulator::Launch{static_cast<emulator::Order>(order)});
  });
}

const char* point_tracking(int dtype, int order, const int* numbers, View feature, const float* reference,
                           const float* handle_points, const bool* active, float* moved, float* distance,
                           float* best_distance, int* best_pixel) {
  return guarded(dtype, [&](auto type) {
    using T = decltype(type);
    const draggan::cuda::PointTrackingParams<T> p = {
        sizes_of(numbers), numbers[6],    numbers[7], typed<const T>(feature), reference, handle_points, active, moved,
        distance,          best_distance, best_pixel};
    draggan::cuda::launch_point_tracking(p, emulator::Launch{static_cast<emulator::Order>(order)});
  });
}

const char* motion_supervision(int dtype, int order, const int* numbers, View feature, const float* handle_points,
                               const float* target_points, const bool* active, const int64_t* crop_origin,
                               int whole_height, int whole_width, View grad_feature, float* loss, void* windows,
                               void* rows, float* row_loss, float* row_gradient) {
  return guarded(dtype, [&](auto type) {
    using T = decltype(type);
    const draggan::cuda::MotionSupervisionParams<T> p = {sizes_of(numbers),
                                                         numbers[6],
                                                         numbers[7],
                                                         typed<const T>(feature),
                                                         handle_points,
                                                         target_points,
                                                         active,
                                                         crop_origin,
                                                         whole_height,
                                                         whole_width,
                                                         typed<T>(grad_feature),
                                                         loss,
                                                         static_cast<draggan::cuda::PatchWindow*>(windows),
                                                         static_cast<draggan::cuda::PatchRow*>(rows),
                                                         row_loss,
                                                         row_gradient};
    draggan::cuda::launch_motion_supervision(p, emulator::Launch{static_cast<emulator::Order>(order)});
  });
}

const char* mask_loss(int dtype, int order, const int* numbers, View feature, View feature0, const float* movable_mask,
                      View grad_feature, float* loss, void* quad_sums, float* partial_losses,
                      unsigned* finished_blocks) {
  return guarded(dtype, [&](auto type) {
    using T = decltype(type);
    const draggan::cuda::MaskLossParams<T> p = {sizes_of(numbers),
                                                typed<const T>(feature),
                                                typed<const T>(feature0),
                                                movable_mask,
                                                typed<T>(grad_feature),
                                                loss,
                                                static_cast<float4*>(quad_sums),
                                                partial_losses,
                                                finished_blocks};
    draggan::cuda::launch_mask_loss(p, emulator::Launch{static_cast<emulator::Order>(order)});
  });
}

}  // extern "C"
