#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../ops.h"
#include "launch.h"
#include "mask_loss.cuh"

namespace draggan {
namespace cuda {

std::tuple<Tensor, Tensor> mask_loss(const Tensor& feature, const Tensor& feature0, const Tensor& movable_mask,
                                     at::IntArrayRef image_size) {
  check_mask_loss(feature, feature0, movable_mask, image_size);
  const Sizes sizes = sizes_of(feature, image_size, 0);
  const c10::cuda::CUDAGuard guard(feature.device());
  const Tensor mask = as_floats(movable_mask);
  const Tensor loss = empty_floats({sizes.batch}, feature);
  const Tensor grad = at::empty_like(feature);
  const Tensor quad_sums = empty_floats({sizes.batch, sizes.cell_rows, sizes.cell_columns, 4}, feature);
  const Tensor partial_losses = empty_floats({sizes.batch, mask_blocks(sizes)}, feature);
  const Tensor finished_blocks = empty_ints({sizes.batch}, feature);
  with_element(feature, [&](auto element) {
    using T = typename decltype(element)::type;
    MaskLossParams<T> p;
    p.sizes = sizes;
    p.feature = view_of<T>(feature);
    p.feature0 = view_of<T>(feature0);
    p.movable_mask = mask.const_data_ptr<float>();
    p.grad_feature = mutable_view_of<T>(grad);
    p.loss = loss.mutable_data_ptr<float>();
    p.quad_sums = reinterpret_cast<float4*>(quad_sums.mutable_data_ptr<float>());
    p.partial_losses = partial_losses.mutable_data_ptr<float>();
    p.finished_blocks = reinterpret_cast<unsigned*>(finished_blocks.mutable_data_ptr<int>());
    launch_mask_loss(p, on_current_stream());
  });
  return {loss, grad};
}

}  // namespace cuda
}  // namespace draggan

TORCH_LIBRARY_IMPL(draggan_fast_native, CUDA, m) { m.impl("mask_loss", TORCH_FN(draggan::cuda::mask_loss)); }
