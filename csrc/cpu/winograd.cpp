#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "modulated_conv.h"

namespace draggan::cpu {

constexpr int kTile = 4, kPoints = 36;  // outputs of a tile along an axis; (kTile + 2)²
constexpr int kPanel = 16;              // see panels.h and kernels/winograd.py
// Tiles that go through all steps together: as many as keep what lies between in the cache, but enough for the weights
// that are read for them.
constexpr int64_t kScratchFloats = int64_t{1} << 19;
constexpr int64_t kLeastTiles = 24;
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

// Floats of the calling thread, kept from call to call: memory fresh from the system is cleared page by page, which
// took longer than the transforms.
float* scratch_of(int64_t count) {
  thread_local Floats floats;
  thread_local int64_t size = 0;
  if (count > size) {
    floats.reset();
    floats = uninitialised_floats(count);
    size = count;
  }
  return floats.get();
}

// Floats from one matrix to the next. subtle: a cache line more than it takes; tiles are written to all matrices at
// once, and at powers of two these places would share one set of the cache.
int64_t plane_of(int64_t tiles, int64_t channels) { return (tiles * channels + 15) / 16 * 16 + 16; }

// A convolution's tiles, whose number within all pictures is row-major.
struct Tiles {
  WinogradMap input, output;
  int64_t columns, per_picture;
  const float* x;
  float* y;
  int64_t x_stride, y_stride;
  const float* panels;
  int panel_count;

  int64_t row_floats() const { return static_cast<int64_t>(panel_count) * kPanel; }
  int64_t scratch_floats(int64_t tiles) const {
    return kPoints * (plane_of(tiles, input.channels) + plane_of(tiles, row_floats()));
  }

  // The matrices of `tiles` tiles from `first` on, in `scratch`: 36 to be multiplied [tiles][C], then 36 products.
  struct Part {
    int64_t first, tiles;
    float* scratch;
  };
  float* at_points(const Part& part) const { return part.scratch; }
  float* products(const Part& part) const { return part.scratch + kPoints * plane_of(part.tiles, input.channels); }

  // Of the part's tiles: begin … end.
  void read(const Part& part, int64_t begin, int64_t end) const {
    const auto kernel = DRAGGAN_SELECT(winograd_input_tile);
    const int64_t plane = plane_of(part.tiles, input.channels);
    for (int64_t at = begin; at < end; ++at) {
      const int64_t tile = part.first + at, picture = tile / per_picture, place = tile % per_picture;
      kernel(input, x + picture * x_stride, static_cast<int>(place / columns), static_cast<int>(place % columns),
             at_points(part) + at * input.channels, plane);
    }
  }

  void write(const Part& part, int64_t begin, int64_t end) const {
    const auto kernel = DRAGGAN_SELECT(winograd_output_tile);
    const int64_t plane = plane_of(part.tiles, row_floats());
    for (int64_t at = begin; at < end; ++at) {
      const int64_t tile = part.first + at, picture = tile / per_picture, place = tile % per_picture;
      kernel(output, products(part) + at * row_floats(), plane, static_cast<int>(place / columns),
             static_cast<int>(place % columns), y + picture * y_stride);
    }
  }

  // Of the 36 products' panels, in this order: begin … end.
  void multiply(const Part& part, int64_t begin, int64_t end) const {
    const auto kernel = DRAGGAN_SELECT(multiply_panels);
    const int64_t matrix = static_cast<int64_t>(panel_count) * input.channels * kPanel;
    for (int64_t unit = begin; unit < end;) {
      const int64_t point = unit / panel_count, after = std::min(end, (point + 1) * panel_count);
      kernel(at_points(part) + point * plane_of(part.tiles, input.channels), part.tiles, input.channels,
             panels + point * matrix, static_cast<int>(unit - point * panel_count),
             static_cast<int>(after - point * panel_count),
             products(part) + point * plane_of(part.tiles, row_floats()), row_floats());
      unit = after;
    }
  }
};

// Enough tiles for all threads: each takes some through all three steps.
void by_tiles(const Tiles& tiles, int64_t count, int64_t most) {
  const int64_t threads = at::get_num_threads(), share = (count + threads - 1) / threads;
  const int64_t chunks = threads * ((share + most - 1) / most), largest = (count + chunks - 1) / chunks;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    float* const scratch = scratch_of(tiles.scratch_floats(largest));
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = count * chunk / chunks, here = count * (chunk + 1) / chunks - begin;
      const Tiles::Part part = {begin, here, scratch};
      tiles.read(part, 0, here);
      tiles.multiply(part, 0, kPoints * tiles.panel_count);
      tiles.write(part, 0, here);
    }
  });
}

// Few tiles: the products are shared out, so that every thread reads its part of the weights only.
void by_panels(const Tiles& tiles, int64_t count, int64_t most) {
  float* const scratch = scratch_of(tiles.scratch_floats(std::min(count, most)));
  for (int64_t begin = 0; begin < count; begin += most) {
    const Tiles::Part part = {begin, std::min(most, count - begin), scratch};
    at::parallel_for(0, part.tiles, 2, [&](int64_t first, int64_t last) { tiles.read(part, first, last); });
    at::parallel_for(0, kPoints * tiles.panel_count, 1,
                     [&](int64_t first, int64_t last) { tiles.multiply(part, first, last); });
    at::parallel_for(0, part.tiles, 2, [&](int64_t first, int64_t last) { tiles.write(part, first, last); });
  }
}

// x [B, C, h, w], panels [36, ⌈C'/16⌉, C, 16] -> [B, C', h + 2·rows − 2, w + 2·columns − 2]
Tensor winograd_conv(const Tensor& x, const Tensor& panels, int64_t out_channels, at::IntArrayRef padding) {
  check_map("x", x);
  TORCH_CHECK(x.scalar_type() == at::kFloat, "x must be float32, not ", x.scalar_type(), ".");
  TORCH_CHECK(out_channels >= 1 && out_channels <= kMaxChannels, "out_channels must be from 1 to ", kMaxChannels,
              ", not ", out_channels, ".");
  const std::array<int64_t, 4> shape = {kPoints, (out_channels + kPanel - 1) / kPanel, x.size(1), kPanel};
  TORCH_CHECK(panels.device().is_cpu() && panels.scalar_type() == at::kFloat && panels.sizes() == shape &&
                  panels.is_contiguous(),
              "panels must be a contiguous float32 tensor on the CPU of the shape ", at::IntArrayRef(shape), ", not ",
              panels.scalar_type(), " ", panels.sizes(), " on ", panels.device(), ".");
  TORCH_CHECK(padding.size() == 2 && padding[0] >= 0 && padding[0] <= 2 && padding[1] >= 0 && padding[1] <= 2,
              "padding must be two numbers from 0 to 2, not ", padding, ".");
  const int64_t batch = x.size(0), channels = x.size(1);
  const int64_t height = x.size(2) + 2 * padding[0] - 2, width = x.size(3) + 2 * padding[1] - 2;
  TORCH_CHECK(height >= 1 && width >= 1, "The map ", x.sizes(), " with the padding ", padding, " is smaller than 3×3.");
  const int rows = blocks_of(static_cast<int>(height), kTile), columns = blocks_of(static_cast<int>(width), kTile);
  const int64_t per_picture = static_cast<int64_t>(rows) * columns;
  const Tensor y = empty_map({batch, out_channels, height, width}, x);
  const Tiles tiles = {{static_cast<int>(x.size(2)), static_cast<int>(x.size(3)), static_cast<int>(channels),
                        static_cast<int>(padding[0]), static_cast<int>(padding[1])},
                       {static_cast<int>(height), static_cast<int>(width), static_cast<int>(out_channels), 0, 0},
                       columns,
                       per_picture,
                       x.const_data_ptr<float>(),
                       y.mutable_data_ptr<float>(),
                       x.stride(0),
                       y.stride(0),
                       panels.const_data_ptr<float>(),
                       static_cast<int>(panels.size(1))};
  const int64_t count = batch * per_picture;
  const int64_t most = std::max(kScratchFloats / tiles.scratch_floats(1), kLeastTiles);
  (count < at::get_num_threads() * kLeastTiles ? by_panels : by_tiles)(tiles, count, most);
  return y;
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("winograd_conv(Tensor x, Tensor panels, int out_channels, int[] padding) -> Tensor");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("winograd_conv", TORCH_FN(draggan::cpu::winograd_conv)); }
