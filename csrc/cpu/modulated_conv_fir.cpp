#include <torch/library.h>

#include <array>
#include <cmath>

#include "modulated_conv.h"

namespace draggan::cpu {

constexpr int kMaxTaps = 16;

// The FIR along either axis: output i is Σ taps[j]·input[i + j − before], zeros outside the input.
struct Fir {
  float taps[kMaxTaps];
  int count, before;
  int height, width;  // of the input
};

// A part of a picture: rows and columns of the FIR's output. Pointers are at the picture's first cell.
struct FirTile {
  int first_row, last_row, first_column, last_column;
  Layer layer;
  void* phases[2][2];  // even/odd rows × even/odd columns of the map that is one cell higher and wider than x
  void *x, *x_styled;  // x is an input of the backward pass; x_styled may be null
  const void* grad;    // of x·style; backward
  int width;           // of x
  LayerSums sums, running, discarded;  // of the tile, and scratch; backward
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "modulated_conv_fir_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

Arrangement arrangement() { return {DRAGGAN_SELECT(arrange), DRAGGAN_SELECT(total)}; }

// taps as the configuration has them -> in correlation order, summing to 2: of every two inputs one is zero.
Fir fir_of(at::ArrayRef<double> taps, int height, int width) {
  TORCH_CHECK(taps.size() >= 2 && taps.size() <= kMaxTaps, "taps must be 2 to ", kMaxTaps, " numbers, not ",
              taps.size(), ".");
  double sum = 0;
  for (const double tap : taps) sum += tap;
  TORCH_CHECK(std::isfinite(sum) && sum != 0, "taps must be finite and not sum to zero, but they are ", taps, ".");
  const int count = static_cast<int>(taps.size());
  Fir fir = {{}, count, (count + 1) / 2 - 1, height, width};
  for (int j = 0; j < count; ++j) fir.taps[j] = static_cast<float>(2.0 * taps[count - 1 - j] / sum);
  return fir;
}

// The transpose, which reads what `fir` writes: [height, width].
Fir transpose(const Fir& fir, int height, int width) {
  Fir back = {{}, fir.count, fir.count - 1 - fir.before, height, width};
  std::reverse_copy(fir.taps, fir.taps + fir.count, back.taps);
  return back;
}

// An axis cut into nearly equal pieces of at most `most` cells.
struct Cuts {
  int length, pieces;
  Cuts(int length, int most) : length(length), pieces(blocks_of(length, most)) {}
  int at(int piece) const { return static_cast<int>(static_cast<int64_t>(length) * piece / pieces); }
};

// How a picture is cut into tiles: by the shape alone, so that results do not depend on the thread count. A row of a
// tile is wide enough that its neighbours' cells are few, and narrow enough that the window of rows stays in the cache.
struct Tiling {
  Cuts rows, columns;
  Tiling(int height, int width, int64_t channels)
      : rows(height, 32), columns(width, std::clamp<int>(4096 / padded(channels), 8, 64)) {}
  int parts() const { return rows.pieces * columns.pieces; }
};

// The four maps of the transposed convolution, even rows first.
using Phases = std::array<Tensor, 4>;

void point_to(FirTile& tile, const Phases& phases, int64_t b) {
  for (int i = 0; i < 4; ++i) {
    const int64_t bytes = b * phases[i].stride(0) * phases[i].element_size();
    tile.phases[i / 2][i % 2] = static_cast<char*>(phases[i].data_ptr()) + bytes;
  }
}

// tile_of(b, part): the pointers of a tile. Runs the kernel on every tile of every picture.
template <typename Kernel, typename TileOf>
void for_each_tile(const Tiling& tiling, Kernel kernel, Element element, const Fir& fir, const Tensor& x,
                   const TileOf& tile_of) {
  const int parts = tiling.parts(), widest = blocks_of(tiling.columns.length, tiling.columns.pieces);
  const int64_t units = x.size(0) * parts;
  const int64_t cell = padded(x.size(1)), cells = widest + fir.count - 1 + static_cast<int64_t>(fir.count) * widest;
  at::parallel_for(0, units, grain_of(units, x.numel()), [&](int64_t begin, int64_t end) {
    const Floats scratch = uninitialised_floats((cells + 4) * cell);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int part = unit % parts, row = part / tiling.columns.pieces, column = part % tiling.columns.pieces;
      FirTile tile = tile_of(unit / parts, part);
      tile.first_row = tiling.rows.at(row), tile.last_row = tiling.rows.at(row + 1);
      tile.first_column = tiling.columns.at(column), tile.last_column = tiling.columns.at(column + 1);
      tile.width = static_cast<int>(x.size(3));
      float* const from = scratch.get();
      tile.running = {from, from + cell}, tile.discarded = {from + 2 * cell, from + 3 * cell};
      kernel(element, fir, tile, from + 4 * cell);
    }
  });
}

// even_even [B, C, h + 1, w + 1], even_odd [B, C, h + 1, w], odd_even [B, C, h, w + 1], odd_odd [B, C, h, w]
// -> x [B, C, 2h, 2w] and, where there is a style, x·style.
std::tuple<Tensor, Tensor> fir_activate(const Tensor& even_even, const Tensor& even_odd, const Tensor& odd_even,
                                        const Tensor& odd_odd, at::ArrayRef<double> taps, const Tensor& demodulation,
                                        const std::optional<Tensor>& noise, const Tensor& bias,
                                        const std::optional<Tensor>& style, double gain, std::optional<double> clamp) {
  check_map("odd_odd", odd_odd);
  const auto dtype = odd_odd.scalar_type();
  const int64_t batch = odd_odd.size(0), channels = odd_odd.size(1), h = odd_odd.size(2), w = odd_odd.size(3);
  check_map("even_even", even_even, {batch, channels, h + 1, w + 1}, dtype);
  check_map("even_odd", even_odd, {batch, channels, h + 1, w}, dtype);
  check_map("odd_even", odd_even, {batch, channels, h, w + 1}, dtype);
  const Phases phases = {even_even, even_odd, odd_even, odd_odd};
  const Fir fir = fir_of(taps, 2 * h + 1, 2 * w + 1);
  const Element element = element_of(odd_odd);
  const std::array<int64_t, 4> shape = {batch, channels, 2 * h, 2 * w};
  const Layers layers(shape, element, arrangement(), demodulation, noise, bias, style, gain, clamp);
  const Tensor x = empty_map(shape, odd_odd), x_styled = style ? empty_map(shape, odd_odd) : Tensor();
  char *to = writable_bytes_of(x), *to_styled = writable_bytes_of(x_styled);
  const int64_t picture_bytes = x.stride(0) * x.element_size();
  const Tiling tiling(2 * h, 2 * w, channels);
  for_each_tile(tiling, DRAGGAN_SELECT(fir_activate_tile), element, fir, x, [&](int64_t b, int) {
    FirTile tile = {};
    tile.layer = layers.of(b);
    tile.x = to + b * picture_bytes, tile.x_styled = to_styled ? to_styled + b * picture_bytes : nullptr;
    point_to(tile, phases, b);
    return tile;
  });
  return {x, x_styled};
}

// grad of x·style, x [B, C, 2h, 2w] -> gradients of the four phases, grad_style [B, C], grad_demodulation [B, C].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> activate_backward_fir(
    const Tensor& grad, const std::optional<Tensor>& style, const Tensor& x, const Tensor& demodulation,
    const std::optional<Tensor>& noise, const Tensor& bias, double gain, std::optional<double> clamp,
    at::ArrayRef<double> taps) {
  check_map("x", x);
  check_map("grad", grad, x.sizes(), x.scalar_type());
  TORCH_CHECK(x.size(2) % 2 == 0 && x.size(3) % 2 == 0, "x must have an even height and width, not the shape ",
              x.sizes(), ".");
  const int64_t batch = x.size(0), channels = x.size(1), h = x.size(2) / 2, w = x.size(3) / 2;
  const Fir fir = transpose(fir_of(taps, 2 * h + 1, 2 * w + 1), 2 * h, 2 * w);
  const Element element = element_of(x);
  const Layers layers(x.sizes(), element, arrangement(), demodulation, noise, bias, style, gain,
                      as_stored(clamp, x.scalar_type()));
  const Phases phases = {empty_map({batch, channels, h + 1, w + 1}, x), empty_map({batch, channels, h + 1, w}, x),
                         empty_map({batch, channels, h, w + 1}, x), empty_map({batch, channels, h, w}, x)};
  const Tiling tiling(2 * h + 1, 2 * w + 1, channels);
  const PartialSums sums(batch, tiling.parts(), channels);
  char* values = static_cast<char*>(x.data_ptr());
  const char* from = bytes_of(grad);
  const int64_t picture_bytes = x.stride(0) * x.element_size();
  for_each_tile(tiling, DRAGGAN_SELECT(fir_activate_transpose_tile), element, fir, x, [&](int64_t b, int part) {
    FirTile tile = {};
    tile.layer = layers.of(b);
    tile.x = values + b * picture_bytes, tile.grad = from + b * picture_bytes;
    tile.sums = sums.of(b, part);
    point_to(tile, phases, b);
    return tile;
  });
  auto [grad_style, grad_demodulation] = sums.totals(element, arrangement(), demodulation);
  return {phases[0], phases[1], phases[2], phases[3], grad_style, grad_demodulation};
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def(
      "fir_activate(Tensor even_even, Tensor even_odd, Tensor odd_even, Tensor odd_odd, float[] taps, "
      "Tensor demodulation, Tensor? noise, Tensor bias, Tensor? style, float gain, float? clamp) -> (Tensor, Tensor)");
  m.def(
      "activate_backward_fir(Tensor grad, Tensor? style, Tensor x, Tensor demodulation, Tensor? noise, Tensor bias, "
      "float gain, float? clamp, float[] taps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) {
  m.impl("fir_activate", TORCH_FN(draggan::cpu::fir_activate));
  m.impl("activate_backward_fir", TORCH_FN(draggan::cpu::activate_backward_fir));
}
