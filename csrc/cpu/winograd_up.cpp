#include <torch/library.h>

#include <tuple>
#include <type_traits>

#include "tile_products.h"

namespace draggan::cpu {

// A tile: kTile even and kTile odd rows and columns of the phases, of which the even ones take kEven products.
constexpr int kTile = 3, kEven = kTile + 1, kSide = kEven + kTile;
constexpr int kPoints = kEven + 1, kMatrices = kPoints * kPoints;  // the odd ones share a weight

// One picture: x [h, w, C] and the phases of what lies one cell further, even and odd rows × even and odd columns.
struct UpMaps {
  int height, width, x_channels, phase_channels;
  float* x;
  float* phases[2][2];
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "winograd_up_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr SlotMap<kSide * kSide, kMatrices> kSlots([](int slot) {
  return std::min(slot / kSide, kEven) * kPoints + std::min(slot % kSide, kEven);
});

using Phases = std::array<Tensor, 4>;  // even rows first

template <typename Input, typename Output>
void run(const Tensor& x, const Phases& phases, const Tensor& panels, int64_t in_channels, int64_t down, int64_t across,
         Input input, Output output) {
  const TileProducts<kSide * kSide, kMatrices> products = {
      kSlots, static_cast<int>(in_channels), static_cast<int>(panels.size(1)), panels.const_data_ptr<float>(),
      DRAGGAN_SELECT(multiply_panels)};
  const UpMaps first = {static_cast<int>(x.size(2)),
                        static_cast<int>(x.size(3)),
                        static_cast<int>(x.size(1)),
                        static_cast<int>(phases[0].size(1)),
                        static_cast<float*>(x.data_ptr()),
                        {{static_cast<float*>(phases[0].data_ptr()), static_cast<float*>(phases[1].data_ptr())},
                         {static_cast<float*>(phases[2].data_ptr()), static_cast<float*>(phases[3].data_ptr())}}};
  const auto maps_of = [&](int64_t tile) {
    const int64_t picture = tile / (down * across);
    UpMaps maps = first;
    maps.x += picture * x.stride(0);
    for (int i = 0; i < 4; ++i) maps.phases[i / 2][i % 2] += picture * phases[i].stride(0);
    return maps;
  };
  const auto with = [&](const auto& kernel) {
    return [&, kernel](int64_t tile, float* const* slots) {
      kernel(maps_of(tile), static_cast<int>(tile % (down * across) / across), static_cast<int>(tile % across), slots);
    };
  };
  products.run(x.size(0) * down * across, with(input), with(output));
}

// x [B, C, h, w], panels [25, ⌈C'/16⌉, C, 16] -> the phases of the transposed convolution, C' channels each.
std::tuple<Tensor, Tensor, Tensor, Tensor> winograd_up(const Tensor& x, const Tensor& panels, int64_t out_channels) {
  check_float_map("x", x);
  check_panels(panels, kMatrices, x.size(1), out_channels);
  const int64_t batch = x.size(0), h = x.size(2), w = x.size(3);
  const Phases phases = {empty_map({batch, out_channels, h + 1, w + 1}, x),
                         empty_map({batch, out_channels, h + 1, w}, x), empty_map({batch, out_channels, h, w + 1}, x),
                         empty_map({batch, out_channels, h, w}, x)};
  run(x, phases, panels, x.size(1), h / kTile + 1, w / kTile + 1, DRAGGAN_SELECT(up_input_tile),
      DRAGGAN_SELECT(up_output_tile));
  return {phases[0], phases[1], phases[2], phases[3]};
}

// The transpose: the phases, C channels each, panels of the transposed weight -> [B, C', h, w].
Tensor winograd_up_transpose(const Tensor& even_even, const Tensor& even_odd, const Tensor& odd_even,
                             const Tensor& odd_odd, const Tensor& panels, int64_t out_channels) {
  check_float_map("odd_odd", odd_odd);
  const int64_t batch = odd_odd.size(0), channels = odd_odd.size(1), h = odd_odd.size(2), w = odd_odd.size(3);
  check_map("even_even", even_even, {batch, channels, h + 1, w + 1}, at::kFloat);
  check_map("even_odd", even_odd, {batch, channels, h + 1, w}, at::kFloat);
  check_map("odd_even", odd_even, {batch, channels, h, w + 1}, at::kFloat);
  check_panels(panels, kMatrices, channels, out_channels);
  const Tensor x = empty_map({batch, out_channels, h, w}, odd_odd);
  run(x, {even_even, even_odd, odd_even, odd_odd}, panels, channels, blocks_of(static_cast<int>(h), kTile),
      blocks_of(static_cast<int>(w), kTile), DRAGGAN_SELECT(up_transpose_input_tile),
      DRAGGAN_SELECT(up_transpose_output_tile));
  return x;
}

}  // namespace

}  // namespace draggan::cpu

TORCH_LIBRARY_FRAGMENT(draggan_fast_native, m) {
  m.def("winograd_up(Tensor x, Tensor panels, int out_channels) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "winograd_up_transpose(Tensor even_even, Tensor even_odd, Tensor odd_even, Tensor odd_odd, Tensor panels, "
      "int out_channels) -> Tensor");
}

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) {
  m.impl("winograd_up", TORCH_FN(draggan::cpu::winograd_up));
  m.impl("winograd_up_transpose", TORCH_FN(draggan::cpu::winograd_up_transpose));
}
