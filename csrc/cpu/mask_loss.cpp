#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "../ops.h"
#include "tensors.h"

namespace draggan::cpu {

// Channels of a unit of work: whole rows of a feature map as far as possible, which memory likes best.
constexpr int kMaskBlock = 256;

// The mask-weighted sums of the bilinear weights of a cell's corners: left and right of the upper row, then the lower.
struct CellWeights {
  float w00, w10, w01, w11;
};

// One picture of the batch, as the kernel sees it.
struct MaskLoss {
  FeatureView feature, feature0, grad;
  int image_width;
  const float* movable;  // [H, W], rows movable_stride_y apart
  int64_t movable_stride_y;
  const int *first_x, *first_y;          // [w + 1], [h + 1]: the first pixel of each cell column and row
  const float *fraction_x, *fraction_y;  // [W], [H]: where each pixel lies between its cells
  const CellWeights* weights;            // [h, w]
  const bool* row_is_used;               // [h]: some pixel of the cell row is fixed
  float scale;                           // 1 / (C·H·W)
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "mask_loss_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr int kBand = 8;  // cell rows of a unit of work; fixed, so that results do not depend on the thread count

// The pixels of each cell along one axis, and their fractions.
struct Axis {
  std::vector<int> first;
  std::vector<float> fraction;
  int most = 0;  // pixels in one cell

  Axis(int cells, int pixels) : first(cells + 1), fraction(pixels) {
    for (int cell = 0; cell <= cells; ++cell) first[cell] = first_pixel(cell, cells, pixels);
    for (int pixel = 0; pixel < pixels; ++pixel) fraction[pixel] = source_of(pixel, cells, pixels).fraction;
    for (int cell = 0; cell < cells; ++cell) most = std::max(most, first[cell + 1] - first[cell]);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> mask_loss(const Tensor& feature, const Tensor& feature0, const Tensor& movable_mask,
                                     at::IntArrayRef image_size) {
  check_mask_loss(feature, feature0, movable_mask, image_size);
  const int batch = feature.size(0), channels = feature.size(1), h = feature.size(2), w = feature.size(3);
  const int height = image_size[0], width = image_size[1];
  Tensor movable = movable_mask.to(at::kFloat);
  if (movable.stride(2) != 1) movable = movable.contiguous();
  const Tensor loss = at::empty({batch}, feature.options().dtype(at::kFloat));
  const Tensor grad = empty_gradient(feature);

  const Axis x_axis(w, width), y_axis(h, height);
  std::vector<CellWeights> weights(static_cast<size_t>(batch) * h * w);
  const auto row_is_used = std::make_unique<bool[]>(static_cast<size_t>(batch) * h);
  std::vector<MaskLoss> pictures;
  for (int b = 0; b < batch; ++b) {
    const size_t first_row = static_cast<size_t>(b) * h;
    pictures.push_back({view_of(feature, b), view_of(feature0, b), view_of(grad, b), width,
                        movable.const_data_ptr<float>() + b * movable.stride(0), movable.stride(1), x_axis.first.data(),
                        y_axis.first.data(), x_axis.fraction.data(), y_axis.fraction.data(),
                        weights.data() + first_row * w, row_is_used.get() + first_row,
                        static_cast<float>(1.0 / (static_cast<double>(channels) * height * width))});
  }

  const auto mask_weights = DRAGGAN_SELECT(mask_weights);
  at::parallel_for(0, static_cast<int64_t>(batch) * h, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(2 * static_cast<size_t>(width));
    for (int64_t row = begin; row < end; ++row) {
      CellWeights* of_row = weights.data() + row * w;
      mask_weights(pictures[row / h], row % h, sums.data(), of_row);
      row_is_used[row] = std::any_of(of_row, of_row + w, [](const CellWeights& cell) {
        return cell.w00 != 0 || cell.w10 != 0 || cell.w01 != 0 || cell.w11 != 0;
      });
    }
  });

  const int blocks = blocks_of(channels, kMaskBlock), bands = (h + kBand - 1) / kBand;
  const int64_t units = static_cast<int64_t>(batch) * bands * blocks;
  std::vector<double> losses(units);
  const size_t row_floats = static_cast<size_t>(w) * channel_block(0, kMaskBlock, channels).padded;
  const size_t scratch_floats = 5 * row_floats + static_cast<size_t>(y_axis.most) * width;
  const auto band_loss = DRAGGAN_SELECT(mask_loss_band);
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[scratch_floats]);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int block = unit % blocks, band = unit / blocks % bands, b = unit / blocks / bands;
      losses[unit] = band_loss(pictures[b], channel_block(block, kMaskBlock, channels), band * kBand,
                               std::min(h, (band + 1) * kBand), scratch.get());
    }
  });

  const double terms = static_cast<double>(channels) * height * width;
  for (int b = 0; b < batch; ++b) {
    double total = 0;
    for (int unit = 0; unit < bands * blocks; ++unit) total += losses[static_cast<size_t>(b) * bands * blocks + unit];
    loss.mutable_data_ptr<float>()[b] = static_cast<float>(total / terms);
  }
  return {loss, grad};
}

}  // namespace draggan::cpu

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) { m.impl("mask_loss", TORCH_FN(draggan::cpu::mask_loss)); }
