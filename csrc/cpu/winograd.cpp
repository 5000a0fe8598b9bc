#include <torch/library.h>

#include "tile_products.h"

namespace draggan::cpu {

constexpr int kTile = 4, kPoints = 36;  // outputs of a tile along an axis; (kTile + 2)²
// Where polynomials are evaluated: 0, ±near, ±far, infinity. See kernels/winograd.py.
constexpr float kNear = 0.70710678118654752f, kFar = 1.41421356237309505f;
constexpr float kNear2 = 0.5f, kFar2 = 2.0f, kSum2 = 2.5f;

// A map of one picture as the transforms see it.
struct WinogradMap {
  int height, width, channels;
  int pad_rows, pad_columns;
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "winograd_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr SlotMap<kPoints, kPoints> kSlots([](int slot) { return slot; });  // a matrix for each point

// x [B, C, h, w], panels [36, ⌈C'/16⌉, C, 16] -> [B, C', h + 2·rows − 2, w + 2·columns − 2]
Tensor winograd_conv(const Tensor& x, const Tensor& panels, int64_t out_channels, at::IntArrayRef padding) {
  check_float_map("x", x);
  check_panels(panels, kPoints, x.size(1), out_channels);
  TORCH_CHECK(padding.size() == 2 && padding[0] >= 0 && padding[0] <= 2 && padding[1] >= 0 && padding[1] <= 2,
              "padding must be two numbers from 0 to 2, not ", padding, ".");
  const int64_t batch = x.size(0);
  const int64_t height = x.size(2) + 2 * padding[0] - 2, width = x.size(3) + 2 * padding[1] - 2;
  TORCH_CHECK(height >= 1 && width >= 1, "The map ", x.sizes(), " with the padding ", padding, " is smaller than 3×3.");
  const int64_t rows = blocks_of(static_cast<int>(height), kTile), columns = blocks_of(static_cast<int>(width), kTile);
  const Tensor y = empty_map({batch, out_channels, height, width}, x);
  const WinogradMap input = {static_cast<int>(x.size(2)), static_cast<int>(x.size(3)), static_cast<int>(x.size(1)),
                             static_cast<int>(padding[0]), static_cast<int>(padding[1])};
  const WinogradMap output = {static_cast<int>(height), static_cast<int>(width), static_cast<int>(out_channels), 0, 0};
  const auto read = DRAGGAN_SELECT(winograd_input_tile);
  const auto write = DRAGGAN_SELECT(winograd_output_tile);
  const float* const from = x.const_data_ptr<float>();
  float* const to = y.mutable_data_ptr<float>();
  const int64_t from_stride = x.stride(0), to_stride = y.stride(0);
  const auto row_of = [&](int64_t tile) { return static_cast<int>(tile % (rows * columns) / columns); };
  const auto column_of = [&](int64_t tile) { return static_cast<int>(tile % columns); };
  const TileProducts<kPoints, kPoints> products = {kSlots, input.channels, static_cast<int>(panels.size(1)),
                                                   panels.const_data_ptr<float>(), DRAGGAN_SELECT(multiply_panels)};
  products.run(
      batch * rows * columns,
      [&](int64_t tile, float* const* slots) {
        read(input, from + tile / (rows * columns) * from_stride, row_of(tile), column_of(tile), slots);
      },
      [&](int64_t tile, float* const* slots) {
        write(output, slots, row_of(tile), column_of(tile), to + tile / (rows * columns) * to_stride);
      });
  return y;
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("winograd_conv(Tensor x, Tensor panels, int out_channels, int[] padding) -> Tensor");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("winograd_conv", TORCH_FN(draggan::cpu::winograd_conv)); }
