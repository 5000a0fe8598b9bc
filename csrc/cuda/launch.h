// From tensors to what the CUDA kernels see, and their launches. Only for csrc/cuda/<op>.cu.
//
// Of torch's CUDA headers only c10's are included: they need nothing of the toolkit beyond its runtime.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>
#include <limits>

#include "common.cuh"

namespace draggan {
namespace cuda {

constexpr int64_t kMaxPoints = 1 << 24;  // of a batch, so that their coordinates are counted in 32 bits

template <typename T>
struct Element {
  using type = T;
};

// Calls op(Element<T>) with the kernels' type for the feature's dtype; check_feature lets no other dtype pass.
template <typename Op>
void with_element(const at::Tensor& feature, const Op& op) {
  switch (feature.scalar_type()) {
    case at::kHalf:
      return op(Element<__half>{});
    case at::kBFloat16:
      return op(Element<__nv_bfloat16>{});
    default:
      return op(Element<float>{});
  }
}

inline Sizes sizes_of(const at::Tensor& feature, at::IntArrayRef image_size, int64_t points) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 64;
  TORCH_CHECK(feature.size(0) <= kMost && feature.size(1) <= kMost, "feature may have at most ", kMost,
              " batch items and channels, but its shape is ", feature.sizes(), ".");
  TORCH_CHECK(feature.size(0) * points <= kMaxPoints, "There may be at most ", kMaxPoints, " points, not ",
              feature.size(0) * points, ".");
  return {static_cast<int>(feature.size(0)), static_cast<int>(feature.size(1)), static_cast<int>(feature.size(2)),
          static_cast<int>(feature.size(3)), static_cast<int>(image_size[0]),   static_cast<int>(image_size[1])};
}

template <typename T>
FeatureView<const T> view_of(const at::Tensor& map) {
  return {static_cast<const T*>(map.const_data_ptr()), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

template <typename T>
FeatureView<T> mutable_view_of(const at::Tensor& map) {
  return {static_cast<T*>(map.mutable_data_ptr()), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

// Small arrays are read through a contiguous copy in the dtype the kernels want (the same tensor if it is one already).
inline at::Tensor as_floats(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

inline at::Tensor empty_floats(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

inline at::Tensor empty_ints(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kInt).memory_format(at::MemoryFormat::Contiguous));
}

// The callable that launch_<op> of a .cuh wants: enqueues a kernel and reports a launch that CUDA refused.
struct StreamLaunch {
  cudaStream_t stream;

  template <typename Kernel, typename Params>
  void operator()(Kernel kernel, int64_t blocks, int threads, const Params& params) const {
    if (blocks == 0) return;  // an empty batch, or no points: CUDA refuses an empty grid
    TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "The feature map, the radius and the number of points need ",
                blocks, " blocks of threads together, more than CUDA can launch.");
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(params);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

inline StreamLaunch on_current_stream() { return {c10::cuda::getCurrentCUDAStream()}; }

}  // namespace cuda
}  // namespace draggan
