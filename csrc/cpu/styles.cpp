// Styles and demodulations of all layers, and the gradient of the latent, specified in kernels/styles.py: two passes
// over small matrices that as PyTorch operators would be some twenty calls a layer.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "modulated_conv.h"

#define DRAGGAN_KERNEL "styles_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr float kEpsilon = 1e-8f;
constexpr int64_t kAlone = int64_t{1} << 20;  // floats of matrices that one thread reads sooner than two begin

void check_floats(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous() &&
                  tensor.sizes() == shape,
              name, " must be contiguous float32 on the CPU of the shape ", shape, ", not ", tensor.scalar_type(), " ",
              tensor.sizes(), ".");
}

// one(layer) for all layers.
template <typename One>
void for_layers(at::TensorList affines, at::TensorList energies, const One& one) {
  const int64_t layers = static_cast<int64_t>(affines.size());
  int64_t floats = 0;
  for (int64_t i = 0; i < layers; ++i) floats += affines[i].numel() + energies[i].numel();
  at::parallel_for(0, layers, floats < kAlone ? layers : 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) one(i);
  });
}

void check_layer(const Tensor& affine, const Tensor& energy, int64_t w_dim) {
  TORCH_CHECK(affine.dim() == 2 && energy.dim() == 2, "affines and energies must be matrices.");
  check_floats("an affine", affine, {affine.size(0), w_dim});
  check_floats("an energy", energy, {energy.size(0), affine.size(0)});
}

// w_plus [B, num_ws, w_dim]; of each layer, to which row first_row + its number belongs: affine [C, w_dim], bias [C],
// energy [C', C] -> styles [B, C] of all layers, then demodulations [B, C'].
std::vector<Tensor> modulation(const Tensor& w_plus, int64_t first_row, at::TensorList affines, at::TensorList biases,
                               at::TensorList energies) {
  const int64_t layers = static_cast<int64_t>(affines.size());
  TORCH_CHECK(
      w_plus.dim() == 3 && w_plus.scalar_type() == at::kFloat && w_plus.device().is_cpu() && w_plus.is_contiguous(),
      "w_plus must be contiguous float32 on the CPU of the shape [B, num_ws, w_dim], not ", w_plus.scalar_type(), " ",
      w_plus.sizes(), ".");
  TORCH_CHECK(biases.size() == affines.size() && energies.size() == affines.size(),
              "There must be as many biases and energies as affines.");
  TORCH_CHECK(first_row >= 0 && first_row + layers <= w_plus.size(1), "w_plus has ", w_plus.size(1), " rows; rows ",
              first_row, " to ", first_row + layers - 1, " are asked for.");
  const int64_t batch = w_plus.size(0), w_dim = w_plus.size(2);
  std::vector<Tensor> made(2 * layers);
  for (int64_t i = 0; i < layers; ++i) {
    check_layer(affines[i], energies[i], w_dim);
    check_floats("a bias", biases[i], {affines[i].size(0)});
    made[i] = at::empty({batch, affines[i].size(0)}, w_plus.options());
    made[layers + i] = at::empty({batch, energies[i].size(0)}, w_plus.options());
  }
  const auto matrix_times = DRAGGAN_SELECT(matrix_times);
  for_layers(affines, energies, [&](int64_t i) {
    const int64_t channels = affines[i].size(0), out_channels = energies[i].size(0);
    const float* const bias = biases[i].const_data_ptr<float>();
    std::vector<float> squares(channels);
    for (int64_t b = 0; b < batch; ++b) {
      float* const style = made[i].mutable_data_ptr<float>() + b * channels;
      float* const demodulation = made[layers + i].mutable_data_ptr<float>() + b * out_channels;
      matrix_times(affines[i].const_data_ptr<float>(),
                   w_plus.const_data_ptr<float>() + (b * w_plus.size(1) + first_row + i) * w_dim, channels, w_dim,
                   style);
      for (int64_t c = 0; c < channels; ++c) {
        style[c] += bias[c];
        squares[c] = style[c] * style[c];
      }
      matrix_times(energies[i].const_data_ptr<float>(), squares.data(), out_channels, channels, demodulation);
      for (int64_t c = 0; c < out_channels; ++c) demodulation[c] = 1.0f / std::sqrt(demodulation[c] + kEpsilon);
    }
  });
  return made;
}

// Of each layer: gradients of its style [B, C] and demodulation [B, C'], both as they are -> [B, layers, w_dim].
Tensor latent_gradient(at::TensorList grad_styles, at::TensorList grad_demodulations, at::TensorList styles,
                       at::TensorList demodulations, at::TensorList energies, at::TensorList affines) {
  const int64_t layers = static_cast<int64_t>(affines.size());
  TORCH_CHECK(layers > 0, "There must be a layer.");
  for (const at::TensorList& list : {grad_styles, grad_demodulations, styles, demodulations, energies})
    TORCH_CHECK(static_cast<int64_t>(list.size()) == layers, "All lists must be as long as affines.");
  TORCH_CHECK(styles[0].dim() == 2 && affines[0].dim() == 2, "styles must be [B, C] and affines [C, w_dim].");
  const int64_t batch = styles[0].size(0), w_dim = affines[0].size(1);
  for (int64_t i = 0; i < layers; ++i) {
    check_layer(affines[i], energies[i], w_dim);
    check_floats("a style", styles[i], {batch, affines[i].size(0)});
    check_floats("the gradient of a style", grad_styles[i], {batch, affines[i].size(0)});
    check_floats("a demodulation", demodulations[i], {batch, energies[i].size(0)});
    check_floats("the gradient of a demodulation", grad_demodulations[i], {batch, energies[i].size(0)});
  }
  const Tensor gradient = at::zeros({batch, layers, w_dim}, styles[0].options());
  const auto add_times_matrix = DRAGGAN_SELECT(add_times_matrix);
  for_layers(affines, energies, [&](int64_t i) {
    const int64_t channels = affines[i].size(0), out_channels = energies[i].size(0);
    std::vector<float> factors(out_channels), total(channels);
    for (int64_t b = 0; b < batch; ++b) {
      const float* const style = styles[i].const_data_ptr<float>() + b * channels;
      const float* const grad_style = grad_styles[i].const_data_ptr<float>() + b * channels;
      const float* const d = demodulations[i].const_data_ptr<float>() + b * out_channels;
      const float* const grad_d = grad_demodulations[i].const_data_ptr<float>() + b * out_channels;
      for (int64_t c = 0; c < out_channels; ++c) factors[c] = grad_d[c] * (d[c] * d[c] * d[c]);
      std::fill(total.begin(), total.end(), 0.0f);
      add_times_matrix(energies[i].const_data_ptr<float>(), factors.data(), out_channels, channels, total.data());
      for (int64_t c = 0; c < channels; ++c) total[c] = grad_style[c] - style[c] * total[c];
      add_times_matrix(affines[i].const_data_ptr<float>(), total.data(), channels, w_dim,
                       gradient.mutable_data_ptr<float>() + (b * layers + i) * w_dim);
    }
  });
  return gradient;
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("modulation(Tensor w_plus, int first_row, Tensor[] affines, Tensor[] biases, Tensor[] energies) -> Tensor[]");
  m.def(
      "latent_gradient(Tensor[] grad_styles, Tensor[] grad_demodulations, Tensor[] styles, Tensor[] demodulations, "
      "Tensor[] energies, Tensor[] affines) -> Tensor");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) {
  m.impl("modulation", TORCH_FN(draggan::cpu::modulation));
  m.impl("latent_gradient", TORCH_FN(draggan::cpu::latent_gradient));
}
