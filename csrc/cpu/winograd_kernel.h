// The two transforms of kernels/winograd.py around its 36 matrix products, on vectors of channels.
// Included by each_level.h once for each level; see there.

#include "panels.h"
#include "part_lanes.h"

// Bᵀ·d along one axis: six values in, six out.
DRAGGAN_INLINE void to_points(const Vec* d, int step, Vec* out) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vec p = broadcast(kNear), q = broadcast(kFar);
  const Vec even = d4 - kFar2 * d2, odd = p * (d3 - kFar2 * d1);
  const Vec even_far = d4 - kNear2 * d2, odd_far = q * (d3 - kNear2 * d1);
  out[0] = d0 - kSum2 * d2 + d4;  // kNear2·kFar2 is 1
  out[step] = even + odd;
  out[2 * step] = even - odd;
  out[3 * step] = even_far + odd_far;
  out[4 * step] = even_far - odd_far;
  out[5 * step] = d1 - kSum2 * d3 + d5;
}

// Aᵀ·m along one axis: six values, `step` apart, in; four out, `out_step` apart.
DRAGGAN_INLINE void from_points(const Vec* m, int step, Vec* out, int out_step) {
  const Vec near = m[step] + m[2 * step], near_odd = m[step] - m[2 * step];
  const Vec far = m[3 * step] + m[4 * step], far_odd = m[3 * step] - m[4 * step];
  out[0] = m[0] + near + far;
  out[out_step] = kNear * near_odd + kFar * far_odd;
  out[2 * out_step] = kNear2 * near + kFar2 * far;
  out[3 * out_step] = kNear * kNear2 * near_odd + kFar * kFar2 * far_odd + m[5 * step];
}

// The 6×6 cells from (y0, x0) on, which lie all inside the map if kInside, in channels [c, c + count).
template <bool kWhole, bool kInside>
DRAGGAN_INLINE void read_points(const WinogradMap& map, const float* x, int y0, int x0, int c, int count,
                                float* const* slots) {
  Vec d[36];
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 6; ++j) {
      const bool inside = kInside || (y0 + i >= 0 && y0 + i < map.height && x0 + j >= 0 && x0 + j < map.width);
      const int64_t cell = static_cast<int64_t>(y0 + i) * map.width + x0 + j;
      d[6 * i + j] = inside ? load_lanes<kWhole>(x + cell * map.channels + c, count) : Vec{};
    }
  }
  for (int j = 0; j < 6; ++j) to_points(d + j, 6, d + j);
  for (int i = 0; i < 6; ++i) to_points(d + 6 * i, 1, d + 6 * i);
  for (int k = 0; k < 36; ++k) store_lanes<kWhole>(slots[k] + c, count, d[k]);
}

// Tile (row, column) of one picture [h, w, C]: its 6×6 cells to a row of each of the 36 matrices.
static void winograd_input_tile(const WinogradMap& map, const float* x, int row, int column, float* const* slots) {
  const int y0 = row * kTile - map.pad_rows, x0 = column * kTile - map.pad_columns;
  const bool inside = y0 >= 0 && x0 >= 0 && y0 + 6 <= map.height && x0 + 6 <= map.width;
  const int whole = map.channels / kLanes * kLanes, rest = map.channels - whole;
  for (int c = 0; c < whole; c += kLanes) {
    if (inside)
      read_points<true, true>(map, x, y0, x0, c, kLanes, slots);
    else
      read_points<true, false>(map, x, y0, x0, c, kLanes, slots);
  }
  if (rest > 0) read_points<false, false>(map, x, y0, x0, whole, rest, slots);
}

template <bool kWhole>
DRAGGAN_INLINE void write_cells(const WinogradMap& map, const float* const* slots, int y0, int x0, int c, int count,
                                float* y) {
  Vec m[36], half[24], out[16];
  for (int k = 0; k < 36; ++k) m[k] = load_lanes<kWhole>(slots[k] + c, count);
  for (int j = 0; j < 6; ++j) from_points(m + j, 6, half + j, 6);
  for (int i = 0; i < 4; ++i) from_points(half + 6 * i, 1, out + 4 * i, 1);
  for (int i = 0; i < kTile && y0 + i < map.height; ++i) {
    for (int j = 0; j < kTile && x0 + j < map.width; ++j) {
      const int64_t cell = static_cast<int64_t>(y0 + i) * map.width + x0 + j;
      store_lanes<kWhole>(y + cell * map.channels + c, count, out[4 * i + j]);
    }
  }
}

// The way back: a row of each of the 36 products to 4×4 cells of a picture [h, w, C], as far as they lie in it.
static void winograd_output_tile(const WinogradMap& map, const float* const* slots, int row, int column, float* y) {
  const int whole = map.channels / kLanes * kLanes, rest = map.channels - whole;
  for (int c = 0; c < whole; c += kLanes) write_cells<true>(map, slots, row * kTile, column * kTile, c, kLanes, y);
  if (rest > 0) write_cells<false>(map, slots, row * kTile, column * kTile, whole, rest, y);
}
