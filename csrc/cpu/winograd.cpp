#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "modulated_conv.h"

namespace draggan::cpu {

constexpr int kTile = 4, kPoints = 36;  // outputs of a tile along an axis; (kTile + 2)²
// Tiles: how many are many, and how many of them go together. By the shape alone, so that no result depends on the
// thread count; enough groups for the threads of a large machine.
constexpr int kMany = 512, kLeast = 32, kMost = 128, kGroups = 32;
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

// [36, tiles, channels], for the products. bmm takes one call for matrices that lie one behind the other.
Tensor dense_matrices(int64_t tiles, int64_t channels, const Tensor& like) {
  return at::empty({kPoints, tiles, channels}, like.options());
}

// The same for what is multiplied. subtle: the matrices lie a cache line more apart than they are long: tiles are
// written to all of them at once, and at powers of two these places would share one set of the cache.
Tensor matrices(int64_t tiles, int64_t channels, const Tensor& like) {
  const int64_t plane = (tiles * channels + 15) / 16 * 16 + 16;
  return at::empty({kPoints * plane}, like.options()).as_strided({kPoints, tiles, channels}, {plane, channels, 1});
}

// products = at_points × transformed for some of the points, on the calling thread (inside parallel_for).
void multiply(const Tensor& at_points, const Tensor& transformed, const Tensor& products, int64_t first,
              int64_t points) {
  const at::AutoDispatchBelowADInplaceOrView plain;  // nothing is differentiated here, whatever thread this is
  Tensor out = products.narrow(0, first, points);
  at::bmm_out(out, at_points.narrow(0, first, points), transformed.narrow(0, first, points));
}

// The transforms of a convolution's tiles, whose number within all pictures is row-major.
struct Tiles {
  WinogradMap input, output;
  int64_t columns, per_picture;
  const float* x;
  float* y;
  int64_t x_stride, y_stride;

  // The places 0 … end − begin of the matrices are those of the tiles begin … end.
  void read(const Tensor& at_points, int64_t begin, int64_t end) const {
    const auto kernel = DRAGGAN_SELECT(winograd_input_tile);
    float* to = at_points.mutable_data_ptr<float>();
    for (int64_t tile = begin; tile < end; ++tile, to += input.channels) {
      const int64_t picture = tile / per_picture, place = tile % per_picture;
      kernel(input, x + picture * x_stride, static_cast<int>(place / columns), static_cast<int>(place % columns), to,
             at_points.stride(0));
    }
  }

  void write(const Tensor& products, int64_t begin, int64_t end) const {
    const auto kernel = DRAGGAN_SELECT(winograd_output_tile);
    const float* from = products.const_data_ptr<float>();
    for (int64_t tile = begin; tile < end; ++tile, from += output.channels) {
      const int64_t picture = tile / per_picture, place = tile % per_picture;
      kernel(output, from, products.stride(0), static_cast<int>(place / columns), static_cast<int>(place % columns),
             y + picture * y_stride);
    }
  }
};

// Few tiles are shared out by points for the products, so that every thread reads its part of the weights only.
void by_points(const Tiles& tiles, int64_t count, const Tensor& x, const Tensor& transformed) {
  const Tensor at_points = matrices(count, transformed.size(1), x);
  const Tensor products = dense_matrices(count, transformed.size(2), x);
  at::parallel_for(0, count, 2, [&](int64_t begin, int64_t end) {
    tiles.read(at_points.narrow(1, begin, end - begin), begin, end);
  });
  at::parallel_for(0, kPoints, 1,
                   [&](int64_t begin, int64_t end) { multiply(at_points, transformed, products, begin, end - begin); });
  at::parallel_for(0, count, 2, [&](int64_t begin, int64_t end) {
    tiles.write(products.narrow(1, begin, end - begin), begin, end);
  });
}

// Many tiles go through all three steps a few at a time: what lies between stays in the cache.
void by_tiles(const Tiles& tiles, int64_t count, const Tensor& x, const Tensor& transformed) {
  const int64_t chunk_tiles = std::clamp<int64_t>(count / kGroups, kLeast, kMost);
  const int64_t chunks = (count + chunk_tiles - 1) / chunk_tiles;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    const Tensor at_points = matrices(chunk_tiles, transformed.size(1), x);
    const Tensor room = dense_matrices(chunk_tiles, transformed.size(2), x);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
      const Tensor input = at_points.narrow(1, 0, end - begin);
      const Tensor products = room.flatten()
                                  .narrow(0, 0, kPoints * (end - begin) * transformed.size(2))
                                  .view({kPoints, end - begin, transformed.size(2)});
      tiles.read(input, begin, end);
      multiply(input, transformed, products, 0, kPoints);
      tiles.write(products, begin, end);
    }
  });
}

// x [B, C, h, w], transformed [36, C, C'] -> [B, C', h + 2·rows − 2, w + 2·columns − 2]
Tensor winograd_conv(const Tensor& x, const Tensor& transformed, at::IntArrayRef padding) {
  check_map("x", x);
  TORCH_CHECK(x.scalar_type() == at::kFloat, "x must be float32, not ", x.scalar_type(), ".");
  TORCH_CHECK(transformed.device().is_cpu() && transformed.scalar_type() == at::kFloat && transformed.dim() == 3 &&
                  transformed.size(0) == kPoints && transformed.size(1) == x.size(1) &&
                  transformed.size(2) <= kMaxChannels && transformed.is_contiguous(),
              "transformed must be a contiguous float32 tensor on the CPU of the shape [36, ", x.size(1), ", C'], not ",
              transformed.scalar_type(), " ", transformed.sizes(), " on ", transformed.device(), ".");
  TORCH_CHECK(padding.size() == 2 && padding[0] >= 0 && padding[0] <= 2 && padding[1] >= 0 && padding[1] <= 2,
              "padding must be two numbers from 0 to 2, not ", padding, ".");
  const int64_t batch = x.size(0), channels = x.size(1), out_channels = transformed.size(2);
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
                       y.stride(0)};
  const int64_t count = batch * per_picture;
  (count < kMany ? by_points : by_tiles)(tiles, count, x, transformed);
  return y;
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("winograd_conv(Tensor x, Tensor transformed, int[] padding) -> Tensor");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("winograd_conv", TORCH_FN(draggan::cpu::winograd_conv)); }
