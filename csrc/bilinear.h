// The sampling maths of the drag ops: the one place of it, for the host and for the device. No torch header.
//
// A feature map of `cells` samples along an axis is seen through its bilinear upsampling U to `pixels` samples
// (align_corners = false). Nothing here stores U: these functions say where a pixel of U lies in the feature map, which
// pixels make up a handle's patch, and how far the patch is shifted. kernels/reference.py is the specification.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DRAGGAN_HD __host__ __device__ __forceinline__
#else
#define DRAGGAN_HD inline
#endif

namespace draggan {

// Feature maps and images are at most this long along an axis, so that every product below fits 32 bits.
constexpr int kMaxAxis = 32767;
// Radii are at most this, and pixels of absurd points are clamped to it, so that sums of the two fit 32 bits.
constexpr int kMaxReach = 1 << 24;

// Where a pixel lies along one axis of the feature map: between two cells (equal at the last), and how far.
struct Source {
  int cell;
  int next;
  float fraction;  // 0 at cell, towards 1 at next; exactly 0 where the source coordinate is clamped
};

// The source of pixel 0 ≤ pixel < pixels: coordinate (pixel + 0.5)·cells / pixels − 0.5, clamped to [0, cells − 1].
// Computed in integers, so that all backends agree on the cell and the fraction is the correctly rounded one.
DRAGGAN_HD Source source_of(int pixel, int cells, int pixels) {
  const int numerator = (2 * pixel + 1) * cells - pixels;  // coordinate = numerator / (2·pixels)
  const int denominator = 2 * pixels;
  if (numerator <= 0) return {0, cells > 1 ? 1 : 0, 0.0f};
  const int cell = numerator / denominator;
  if (cell >= cells - 1) return {cells - 1, cells - 1, 0.0f};
  return {cell, cell + 1, static_cast<float>(numerator - cell * denominator) / static_cast<float>(denominator)};
}

// The first pixel whose source cell is at least `cell` (0 ≤ cell ≤ cells): cell c owns the pixels
// [first_pixel(c), first_pixel(c + 1)). `pixels` where there is none.
DRAGGAN_HD int first_pixel(int cell, int cells, int pixels) {
  if (cell <= 0) return 0;
  if (cell >= cells) return pixels;
  // the least p with (2p + 1)·cells − pixels ≥ 2·pixels·cell
  const int64_t bound = static_cast<int64_t>(2 * cell + 1) * pixels - cells;
  const int64_t twice = 2 * static_cast<int64_t>(cells);
  const int64_t first = bound <= 0 ? 0 : (bound + twice - 1) / twice;
  return first < pixels ? static_cast<int>(first) : pixels;
}

// a + fraction·(b − a). subtle: exactly a where a = b, so that where U is constant (its outermost half cell)
// differences are exactly zero and ties are exact. Works on floats and on vectors of them.
template <typename T>
DRAGGAN_HD T blend(T a, T b, T fraction) {
  return a + fraction * (b - a);
}

DRAGGAN_HD bool is_finite(float value) { return value - value == 0.0f; }

// A coordinate's nearest pixel, halves to even as torch.round has it; absurd ones are clamped far outside any image.
// The coordinate must be finite.
DRAGGAN_HD int nearest_pixel(float coordinate) {
  const float reach = static_cast<float>(kMaxReach);
  const float clamped = coordinate < -reach ? -reach : (coordinate > reach ? reach : coordinate);
  return static_cast<int>(rintf(clamped));
}

// The shift d of a handle's patch: towards its target, |d| ≤ 1, as whole pixels (−1, 0 or 1) and the fractions between.
struct Shift {
  bool moves;  // false: |target − handle| ≤ 1 or not finite; the handle takes no part
  int whole_x, whole_y;
  float fx, fy;
};

DRAGGAN_HD Shift shift_of(float handle_x, float handle_y, float target_x, float target_y) {
  const float dx = target_x - handle_x, dy = target_y - handle_y;
  // The squares of floats are exact in double: the length is the correctly rounded one on every backend.
  const double x = dx, y = dy;
  const float length = static_cast<float>(sqrt(x * x + y * y));
  if (!(is_finite(length) && length > 1.0f)) return {false, 0, 0, 0.0f, 0.0f};
  const float unit_x = dx / (length + 1e-7f), unit_y = dy / (length + 1e-7f);
  const float whole_x = floorf(unit_x), whole_y = floorf(unit_y);
  return {true, static_cast<int>(whole_x), static_cast<int>(whole_y), unit_x - whole_x, unit_y - whole_y};
}

// Whether an image pixel belongs to the patch of a handle: inside a circle of radius r1 drawn, as the published program
// draws it, on a grid stretched by pixels / (pixels − 1) along each axis. The pixel must lie in the image.
DRAGGAN_HD bool in_patch(int x, int y, float handle_x, float handle_y, int r1, int width, int height) {
  // The integer product comes first: on the image's borders nothing is rounded, and the comparison is strict.
  const double dx = static_cast<double>(x * width) / (width > 1 ? width - 1 : 1) - static_cast<double>(handle_x);
  const double dy = static_cast<double>(y * height) / (height > 1 ? height - 1 : 1) - static_cast<double>(handle_y);
  const double limit = static_cast<double>(r1) * static_cast<double>(r1);
#if defined(__CUDA_ARCH__)
  return __dadd_rn(__dmul_rn(dx, dx), __dmul_rn(dy, dy)) < limit;
#else
  const volatile double square_x = dx * dx, square_y = dy * dy;  // volatile: no fused multiply-add, as in PyTorch
  return square_x + square_y < limit;
#endif
}

// How many pixels a patch can reach beyond its handle's nearest pixel: the stretched grid adds up to one.
DRAGGAN_HD int patch_reach(int r1) { return r1 + 1; }

}  // namespace draggan
