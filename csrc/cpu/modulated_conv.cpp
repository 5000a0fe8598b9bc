#include "modulated_conv.h"

#include <torch/library.h>

#define DRAGGAN_KERNEL "modulated_conv_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

Arrangement arrangement() { return {DRAGGAN_SELECT(arrange), DRAGGAN_SELECT(total)}; }

// How many cells a unit of work has: by the shape alone, so that results do not depend on the thread count.
int cells_of_part(int64_t channels) { return static_cast<int>(std::clamp<int64_t>((1 << 15) / channels, 1, 256)); }

// y [B, C, h, w] -> x and, where there is a style, x·style.
std::tuple<Tensor, Tensor> activate(const Tensor& y, const Tensor& demodulation, const std::optional<Tensor>& noise,
                                    const Tensor& bias, const std::optional<Tensor>& style, double gain,
                                    std::optional<double> clamp) {
  check_map("y", y);
  const Element element = element_of(y);
  const Layers layers(y.sizes(), element, arrangement(), demodulation, noise, bias, style, gain, clamp);
  const Tensor x = empty_map(y.sizes(), y), x_styled = style ? empty_map(y.sizes(), y) : Tensor();
  const int cells = y.size(2) * y.size(3), of_part = cells_of_part(y.size(1)), parts = blocks_of(cells, of_part);
  const int64_t units = y.size(0) * parts, picture_bytes = y.stride(0) * y.element_size();
  const char* from = bytes_of(y);
  char *to = writable_bytes_of(x), *to_styled = writable_bytes_of(x_styled);
  const auto run = DRAGGAN_SELECT(activate_cells);
  at::parallel_for(0, units, grain_of(units, y.numel()), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int first = unit % parts * of_part;
      const int64_t b = unit / parts, at = b * picture_bytes;
      run(element, layers.of(b), first, std::min(cells, first + of_part), from + at, to + at,
          to_styled ? to_styled + at : nullptr);
    }
  });
  return {x, x_styled};
}

// grad of x·style, x [B, C, h, w] -> grad_y [B, C, h, w], grad_style [B, C], grad_demodulation [B, C].
std::tuple<Tensor, Tensor, Tensor> activate_backward(const Tensor& grad, const std::optional<Tensor>& style,
                                                     const Tensor& x, const Tensor& demodulation,
                                                     const std::optional<Tensor>& noise, const Tensor& bias,
                                                     double gain, std::optional<double> clamp) {
  check_map("x", x);
  check_map("grad", grad, x.sizes(), x.scalar_type());
  const Element element = element_of(x);
  const Layers layers(x.sizes(), element, arrangement(), demodulation, noise, bias, style, gain,
                      as_stored(clamp, x.scalar_type()));
  const Tensor grad_y = empty_map(x.sizes(), x);
  const int cells = x.size(2) * x.size(3), of_part = cells_of_part(x.size(1)), parts = blocks_of(cells, of_part);
  const int64_t units = x.size(0) * parts, picture_bytes = x.stride(0) * x.element_size();
  const PartialSums sums(x.size(0), parts, x.size(1));
  const char *from = bytes_of(grad), *values = bytes_of(x);
  char* to = writable_bytes_of(grad_y);
  const auto run = DRAGGAN_SELECT(activate_transpose_cells);
  at::parallel_for(0, units, grain_of(units, x.numel()), [&](int64_t begin, int64_t end) {
    const PartialSums running(1, 1, x.size(1));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int part = unit % parts, first = part * of_part;
      const int64_t b = unit / parts, at = b * picture_bytes;
      run(element, layers.of(b), first, std::min(cells, first + of_part), from + at, values + at, to + at,
          sums.of(b, part), running.of(0, 0));
    }
  });
  auto [grad_style, grad_demodulation] = sums.totals(element, arrangement(), demodulation);
  return {grad_y, grad_style, grad_demodulation};
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def(
      "activate(Tensor y, Tensor demodulation, Tensor? noise, Tensor bias, Tensor? style, float gain, float? clamp) -> "
      "(Tensor, Tensor)");
  m.def(
      "activate_backward(Tensor grad, Tensor? style, Tensor x, Tensor demodulation, Tensor? noise, Tensor bias, "
      "float gain, float? clamp) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) {
  m.impl("activate", TORCH_FN(draggan::cpu::activate));
  m.impl("activate_backward", TORCH_FN(draggan::cpu::activate_backward));
}
