#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../checks.h"
#include "../ops.h"
#include "tensors.h"

namespace draggan::cpu {

// One picture of the batch, as the kernel sees it.
struct MotionSupervision {
  FeatureView feature;
  FeatureView grad;  // float32: gradients are added to it
  int image_height, image_width;
};

// A column of pixels in the window of a patch: between the cells `here` and `right`, counted from the window's first.
struct PatchColumn {
  bool inside;  // of the image
  int here, right;
  float fraction;
};

struct PatchSpan {
  int begin, end;  // pixels of one row that belong to the patch
};

// One handle that takes part.
struct Patch {
  int handle;
  Shift shift;
  float weight;                         // 1 / (channels · pixels of the patch)
  int y_begin, y_end;                   // rows of the patch
  int x_begin, columns;                 // columns of its window, which holds every pixel that is read
  int first_cell, cells;                // columns of the feature map that they lie between
  int first_row, rows;                  // rows of the feature map that get a gradient
  const PatchColumn* column = nullptr;  // [columns]
  const PatchSpan* span = nullptr;      // [y_end - y_begin]
  std::vector<PatchColumn> column_storage;
  std::vector<PatchSpan> span_storage;
};

}  // namespace draggan::cpu

#define DRAGGAN_KERNEL "motion_supervision_kernel.h"
#include "each_level.h"

namespace draggan::cpu {

namespace {

constexpr int kBlock = 32;        // channels of a unit of work
constexpr int kScratchRows = 10;  // pixel rows that patch_loss keeps: 2 + 4 forward, 2 + 2 backward

// The whole image, and where in it the image at hand, a crop of it or itself, begins. The patch's circle is drawn on a
// grid that depends on the place in the whole image.
struct Whole {
  int width, height, x, y;
};

// The pixels of row y inside the patch: they are neighbours, the patch is a disc.
PatchSpan span_of(int y, float handle_x, float handle_y, int r1, int width, const Whole& whole) {
  handle_x += whole.x, handle_y += whole.y, y += whole.y;
  const auto inside = [&](int64_t x) {
    return x >= 0 && x < width &&
           in_patch(static_cast<int>(x) + whole.x, y, handle_x, handle_y, r1, whole.width, whole.height);
  };
  // A guess from the circle's equation, then the exact comparison decides.
  const double dy = static_cast<double>(y) * whole.height / std::max(whole.height - 1, 1) - handle_y;
  const double half = std::sqrt(std::max(static_cast<double>(r1) * r1 - dy * dy, 0.0));
  const double squeeze = static_cast<double>(std::max(whole.width - 1, 1)) / whole.width;
  const auto pixel = [&](double x) {
    return static_cast<int64_t>(std::clamp(x * squeeze, -1.0, double(whole.width))) - whole.x;
  };
  int64_t begin = std::max<int64_t>(pixel(handle_x - half) - 2, 0);
  const int64_t last = std::min<int64_t>(pixel(handle_x + half) + 2, width - 1);
  while (begin <= last && !inside(begin)) ++begin;
  int64_t end = last + 1;
  while (end > begin && !inside(end - 1)) --end;
  return {static_cast<int>(begin), static_cast<int>(end)};
}

// The patch of a handle; without rows if the handle takes no part or its patch lies outside the image.
Patch patch_of(int handle, const float* from, const float* to, int r1, const FeatureView& map, int height, int width,
               const Whole& whole) {
  Patch patch{};
  patch.handle = handle;
  patch.shift = shift_of(from[0], from[1], to[0], to[1]);
  if (!patch.shift.moves) return patch;
  const int py = nearest_pixel(from[1]), reach = patch_reach(r1);
  const int first = std::max(py - reach, 0), last = std::min(py + reach, height - 1);
  int left = width, right = 0;
  int64_t pixels = 0;
  for (int y = first; y <= last; ++y) {
    const PatchSpan span = span_of(y, from[0], from[1], r1, width, whole);
    if (span.begin == span.end) {
      if (pixels > 0) break;  // below the disc
      continue;
    }
    if (pixels == 0) patch.y_begin = y;
    patch.y_end = y + 1;
    patch.span_storage.push_back(span);
    pixels += span.end - span.begin;
    left = std::min(left, span.begin), right = std::max(right, span.end);
  }
  if (pixels == 0) return patch;
  patch.weight = static_cast<float>(1.0 / (static_cast<double>(map.channels) * pixels));

  // The window: U(p + d) reads whole pixels from p − 1 to p + 2.
  patch.x_begin = left - 1;
  patch.columns = right + 2 - patch.x_begin;
  const int first_inside = std::max(patch.x_begin, 0), last_inside = std::min(right + 1, width - 1);
  patch.first_cell = source_of(first_inside, map.width, width).cell;
  patch.cells = source_of(last_inside, map.width, width).next - patch.first_cell + 1;
  for (int k = 0; k < patch.columns; ++k) {
    const int x = patch.x_begin + k;
    const bool inside = x >= 0 && x < width;
    const Source source = source_of(inside ? x : 0, map.width, width);
    if (inside) {
      patch.column_storage.push_back(
          {true, source.cell - patch.first_cell, source.next - patch.first_cell, source.fraction});
    } else {
      patch.column_storage.push_back({false, 0, 0, 0.0f});
    }
  }
  const int first_y = std::max(patch.y_begin - 1, 0), last_y = std::min(patch.y_end + 1, height - 1);
  patch.first_row = source_of(first_y, map.height, height).cell;
  patch.rows = source_of(last_y, map.height, height).next - patch.first_row + 1;
  patch.column = patch.column_storage.data();
  patch.span = patch.span_storage.data();
  return patch;
}

void fill_zero(const Tensor& dense) {
  char* data = static_cast<char*>(dense.data_ptr());
  at::parallel_for(0, dense.numel() * dense.element_size(), 1 << 19,
                   [&](int64_t begin, int64_t end) { std::memset(data + begin, 0, end - begin); });
}

}  // namespace

static std::tuple<Tensor, Tensor> supervise(const Tensor& feature, const Tensor& handle_points,
                                            const Tensor& target_points, const Tensor& active, int64_t r1,
                                            at::IntArrayRef image_size, const std::vector<Whole>& wholes) {
  const int batch = feature.size(0), channels = feature.size(1), count = handle_points.size(1);
  const int height = image_size[0], width = image_size[1];
  const Tensor handles = as_floats(handle_points), targets = as_floats(target_points);
  const Tensor is_active = active.contiguous();
  const bool* takes_part = is_active.const_data_ptr<bool>();
  const Tensor loss = at::empty({batch}, feature.options().dtype(at::kFloat));
  const Tensor grad = empty_gradient(feature);
  fill_zero(grad);

  std::vector<std::vector<Patch>> patches(batch);
  size_t scratch_floats = 0;
  const int padded = channel_block(0, kBlock, channels).padded;
  for (int64_t n = 0; n < static_cast<int64_t>(batch) * count; ++n) {
    if (!takes_part[n]) continue;
    const int b = n / count;
    Patch patch = patch_of(n % count, handles.const_data_ptr<float>() + 2 * n, targets.const_data_ptr<float>() + 2 * n,
                           r1, view_of(feature, b), height, width, wholes[b]);
    if (patch.y_begin == patch.y_end) continue;
    scratch_floats =
        std::max(scratch_floats, (static_cast<size_t>(kScratchRows) * patch.columns + 2 * patch.cells) * padded);
    patches[b].push_back(std::move(patch));
  }

  // A unit of work is a block of channels of one picture, with all its handles in their order: every element of the
  // gradient is summed by one thread in one order, however many threads there are and however the patches overlap.
  const int blocks = blocks_of(channels, kBlock);
  const bool is_float = feature.scalar_type() == at::kFloat;
  std::vector<double> losses(static_cast<size_t>(batch) * blocks);
  const auto patch_loss = DRAGGAN_SELECT(patch_loss);
  const auto store_box = DRAGGAN_SELECT(store_box);
  at::parallel_for(0, static_cast<int64_t>(batch) * blocks, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[scratch_floats]);
    std::vector<float> box;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int b = unit / blocks;
      if (patches[b].empty()) continue;
      const Channels block = channel_block(unit % blocks, kBlock, channels);
      MotionSupervision p = {view_of(feature, b), view_of(grad, b), height, width};
      int x0 = 0, y0 = 0, box_width = 0, box_height = 0;
      if (!is_float) {  // narrow dtypes: sum in float32, in a box around all patches, and round once
        const auto& all = patches[b];
        x0 = p.feature.width, y0 = p.feature.height;
        int x1 = 0, y1 = 0;
        for (const Patch& patch : all) {
          x0 = std::min(x0, patch.first_cell), x1 = std::max(x1, patch.first_cell + patch.cells);
          y0 = std::min(y0, patch.first_row), y1 = std::max(y1, patch.first_row + patch.rows);
        }
        box_width = x1 - x0, box_height = y1 - y0;
        box.assign(static_cast<size_t>(box_width) * box_height * block.padded, 0.0f);
        const int64_t stride_x = block.padded, stride_y = stride_x * box_width;
        // As an integer: the map's first cell would lie before the box, where no pointer may point.
        const auto before = static_cast<uintptr_t>(y0 * stride_y + x0 * stride_x + block.first) * sizeof(float);
        auto* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(box.data()) - before);
        p.grad = {origin, Element::float32, channels, p.feature.height, p.feature.width, 1, stride_y, stride_x};
      }
      for (const Patch& patch : patches[b]) losses[unit] += patch_loss(p, patch, block, scratch.get());
      if (!is_float) store_box(view_of(grad, b), block, box.data(), y0, box_height, x0, box_width);
    }
  });

  for (int b = 0; b < batch; ++b) {
    double total = 0;
    for (int block = 0; block < blocks; ++block) total += losses[static_cast<size_t>(b) * blocks + block];
    loss.mutable_data_ptr<float>()[b] = static_cast<float>(total);
  }
  return {loss, grad};
}

std::tuple<Tensor, Tensor> motion_supervision(const Tensor& feature, const Tensor& handle_points,
                                              const Tensor& target_points, const Tensor& active, int64_t r1,
                                              at::IntArrayRef image_size) {
  check_motion_supervision(feature, handle_points, target_points, active, r1, image_size);
  const Whole itself = {static_cast<int>(image_size[1]), static_cast<int>(image_size[0]), 0, 0};
  return supervise(feature, handle_points, target_points, active, r1, image_size,
                   std::vector<Whole>(feature.size(0), itself));
}

std::tuple<Tensor, Tensor> motion_supervision_on_crops(const Tensor& feature, const Tensor& handle_points,
                                                       const Tensor& target_points, const Tensor& active, int64_t r1,
                                                       at::IntArrayRef image_size, const Tensor& crop_origin,
                                                       at::IntArrayRef whole_size) {
  check_motion_supervision(feature, handle_points, target_points, active, r1, image_size);
  check_crops(feature, image_size, crop_origin, whole_size);
  const Tensor origins = crop_origin.to(at::kLong).contiguous();
  std::vector<Whole> wholes;
  for (int64_t b = 0; b < feature.size(0); ++b) {
    const int64_t* origin = origins.const_data_ptr<int64_t>() + 2 * b;
    wholes.push_back({static_cast<int>(whole_size[1]), static_cast<int>(whole_size[0]), static_cast<int>(origin[0]),
                      static_cast<int>(origin[1])});
  }
  return supervise(feature, handle_points, target_points, active, r1, image_size, wholes);
}

}  // namespace draggan::cpu

TORCH_LIBRARY_IMPL(draggan_fast_native, CPU, m) {
  m.impl("motion_supervision", TORCH_FN(draggan::cpu::motion_supervision));
  m.impl("motion_supervision_on_crops", TORCH_FN(draggan::cpu::motion_supervision_on_crops));
}
