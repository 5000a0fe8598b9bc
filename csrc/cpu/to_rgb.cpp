#include <ATen/Parallel.h>
#include <torch/library.h>

#include <limits>

#include "modulated_conv.h"

#define DRAGGAN_KERNEL "to_rgb_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr int64_t kGrain = 1 << 16;  // floats of x that are worth a thread

// x [B, C, h, w] channels-last, weight [B, colours, C] with the style in it, bias [colours]: image [B, colours, h, w]
// += the sums of each cell, clamped. Specified in kernels/styles.py.
void add_to_rgb(const Tensor& x, const Tensor& weight, const Tensor& bias, std::optional<double> clamp,
                const Tensor& image) {
  check_map("x", x);
  TORCH_CHECK(x.scalar_type() == at::kFloat, "x must be float32, not ", x.scalar_type(), ".");
  const int64_t batch = x.size(0), channels = x.size(1), cells = x.size(2) * x.size(3), colours = bias.numel();
  const std::array<int64_t, 3> weights = {batch, colours, channels};
  const std::array<int64_t, 4> made = {batch, colours, x.size(2), x.size(3)};
  TORCH_CHECK(colours >= 1 && bias.dim() == 1 && bias.scalar_type() == at::kFloat && bias.is_contiguous(),
              "bias must be contiguous float32 of the shape [colours], not ", bias.scalar_type(), " ", bias.sizes(),
              ".");
  TORCH_CHECK(weight.scalar_type() == at::kFloat && weight.is_contiguous() && weight.sizes() == weights,
              "weight must be contiguous float32 of the shape ", at::IntArrayRef(weights), ", not ",
              weight.scalar_type(), " ", weight.sizes(), ".");
  TORCH_CHECK(image.scalar_type() == at::kFloat && image.is_contiguous() && image.sizes() == made,
              "image must be contiguous float32 of the shape ", at::IntArrayRef(made), ", not ", image.scalar_type(),
              " ", image.sizes(), ".");
  const float limit = clamp ? static_cast<float>(*clamp) : std::numeric_limits<float>::quiet_NaN();
  const auto kernel = DRAGGAN_SELECT(to_rgb_cells);
  for (int64_t b = 0; b < batch; ++b) {
    const float* const from = x.const_data_ptr<float>() + b * x.stride(0);
    float* const to = image.mutable_data_ptr<float>() + b * colours * cells;
    at::parallel_for(0, cells, std::max<int64_t>(kGrain / channels, 1), [&](int64_t begin, int64_t end) {
      kernel(from, begin, end, cells, static_cast<int>(channels), static_cast<int>(colours),
             weight.const_data_ptr<float>() + b * colours * channels, bias.const_data_ptr<float>(), limit, to);
    });
  }
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("add_to_rgb(Tensor x, Tensor weight, Tensor bias, float? clamp, Tensor(a!) image) -> ()");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("add_to_rgb", TORCH_FN(draggan::cpu::add_to_rgb)); }
