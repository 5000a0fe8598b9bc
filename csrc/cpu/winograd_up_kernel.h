// The transforms of kernels/winograd_up.py around its matrix products, on vectors of channels: a tile of a ×2 layer and
// of its transpose. Included by each_level.h once for each level; see there.
//
// Along an axis a tile has 7 places: kEven values of even rows (columns), or what they are at the points, then kTile
// odd ones.

#include "panels.h"
#include "part_lanes.h"

// Bᵀ·d: four values of even rows, `step` apart, to the points 0, 1, −1 and infinity.
DRAGGAN_INLINE void even_to_points(const Vec* d, int step, Vec* out, int out_step) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  out[0] = d0 - d2;
  out[out_step] = d1 + d2;
  out[2 * out_step] = d2 - d1;
  out[3 * out_step] = d3 - d1;
}

// Aᵀ·m: four values at the points to three even rows.
DRAGGAN_INLINE void even_from_points(const Vec* m, int step, Vec* out, int out_step) {
  const Vec sum = m[step] + m[2 * step];
  out[0] = m[0] + sum;
  out[out_step] = m[step] - m[2 * step];
  out[2 * out_step] = sum + m[3 * step];
}

template <bool kWhole>
DRAGGAN_INLINE void store_slots(const Vec* places, int c, int count, float* const* slots) {
  for (int k = 0; k < kSide * kSide; ++k) store_lanes<kWhole>(slots[k] + c, count, places[k]);
}

// Four cells of x along either axis serve both: for even rows at the points, for odd ones the last three as they are.
template <bool kWhole>
DRAGGAN_INLINE void read_x(const UpMaps& maps, int y0, int x0, int c, int count, float* const* slots) {
  Vec d[kEven * kEven], rows[kSide * kEven], places[kSide * kSide];
  for (int i = 0; i < kEven; ++i) {
    for (int j = 0; j < kEven; ++j) {
      const bool inside = y0 + i >= 0 && y0 + i < maps.height && x0 + j >= 0 && x0 + j < maps.width;
      const int64_t cell = static_cast<int64_t>(y0 + i) * maps.width + x0 + j;
      d[kEven * i + j] = inside ? load_lanes<kWhole>(maps.x + cell * maps.x_channels + c, count) : Vec{};
    }
  }
  for (int j = 0; j < kEven; ++j) {
    even_to_points(d + j, kEven, rows + j, kEven);
    for (int i = 0; i < kTile; ++i) rows[kEven * (kEven + i) + j] = d[kEven * (i + 1) + j];
  }
  for (int i = 0; i < kSide; ++i) {
    const Vec* row = rows + kEven * i;
    even_to_points(row, 1, places + kSide * i, 1);
    for (int j = 0; j < kTile; ++j) places[kSide * i + kEven + j] = row[j + 1];
  }
  store_slots<kWhole>(places, c, count, slots);
}

// The two directions by vectors of channels: `one` gets (kWhole, channel, count).
template <typename One>
DRAGGAN_INLINE void for_channels(int channels, const One& one) {
  const int whole = channels / kLanes * kLanes;
  for (int c = 0; c < whole; c += kLanes) one(std::true_type{}, c, kLanes);
  if (whole < channels) one(std::false_type{}, whole, channels - whole);
}

// Tile (row, column) of x [h, w, C].
static void up_input_tile(const UpMaps& maps, int row, int column, float* const* slots) {
  for_channels(maps.x_channels, [&](auto whole, int c, int count) __attribute__((always_inline)) {
    read_x<whole.value>(maps, row * kTile - 1, column * kTile - 1, c, count, slots);
  });
}

// Where a cell of the phases lies, by its place in a tile; null if it lies outside.
DRAGGAN_INLINE float* phase_cell(const UpMaps& maps, int row, int column, int i, int j, int even) {
  const bool odd_row = i >= even, odd_column = j >= even;
  const int y = row * kTile + (odd_row ? i - even : i), x = column * kTile + (odd_column ? j - even : j);
  const int height = maps.height + !odd_row, width = maps.width + !odd_column;
  if (y >= height || x >= width) return nullptr;
  return maps.phases[odd_row][odd_column] + (static_cast<int64_t>(y) * width + x) * maps.phase_channels;
}

// Products to the phases: kTile even rows and columns, and as many odd ones.
template <bool kWhole>
DRAGGAN_INLINE void write_phases(const UpMaps& maps, int row, int column, int c, int count, const float* const* slots) {
  Vec m[kSide * kSide], half[kSide * 2 * kTile], out[4 * kTile * kTile];
  for (int k = 0; k < kSide * kSide; ++k) m[k] = load_lanes<kWhole>(slots[k] + c, count);
  for (int i = 0; i < kSide; ++i) {
    even_from_points(m + kSide * i, 1, half + 2 * kTile * i, 1);
    for (int j = 0; j < kTile; ++j) half[2 * kTile * i + kTile + j] = m[kSide * i + kEven + j];
  }
  for (int j = 0; j < 2 * kTile; ++j) {
    even_from_points(half + j, 2 * kTile, out + j, 2 * kTile);
    for (int i = 0; i < kTile; ++i) out[2 * kTile * (kTile + i) + j] = half[2 * kTile * (kEven + i) + j];
  }
  for (int i = 0; i < 2 * kTile; ++i) {
    for (int j = 0; j < 2 * kTile; ++j) {
      float* const cell = phase_cell(maps, row, column, i, j, kTile);
      if (cell) store_lanes<kWhole>(cell + c, count, out[2 * kTile * i + j]);
    }
  }
}

static void up_output_tile(const UpMaps& maps, int row, int column, const float* const* slots) {
  for_channels(maps.phase_channels, [&](auto whole, int c, int count) __attribute__((always_inline)) {
    write_phases<whole.value>(maps, row, column, c, count, slots);
  });
}

// The transpose reads the phases: kEven even rows and columns, at the points then, and kTile odd ones.
template <bool kWhole>
DRAGGAN_INLINE void read_phases(const UpMaps& maps, int row, int column, int c, int count, float* const* slots) {
  Vec places[kSide * kSide];
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) {
      const float* const cell = phase_cell(maps, row, column, i, j, kEven);
      places[kSide * i + j] = cell ? load_lanes<kWhole>(cell + c, count) : Vec{};
    }
  }
  for (int j = 0; j < kSide; ++j) even_to_points(places + j, kSide, places + j, kSide);
  for (int i = 0; i < kSide; ++i) even_to_points(places + kSide * i, 1, places + kSide * i, 1);
  store_slots<kWhole>(places, c, count, slots);
}

static void up_transpose_input_tile(const UpMaps& maps, int row, int column, float* const* slots) {
  for_channels(maps.phase_channels, [&](auto whole, int c, int count) __attribute__((always_inline)) {
    read_phases<whole.value>(maps, row, column, c, count, slots);
  });
}

// What even and odd rows and columns give to each cell of x is summed before the way back.
template <bool kWhole>
DRAGGAN_INLINE void write_x(const UpMaps& maps, int y0, int x0, int c, int count, const float* const* slots) {
  Vec m[kSide * kSide], half[kTile * kSide], out[kTile * kTile];
  for (int k = 0; k < kSide * kSide; ++k) m[k] = load_lanes<kWhole>(slots[k] + c, count);
  for (int j = 0; j < kSide; ++j) {
    even_from_points(m + j, kSide, half + j, kSide);
    for (int i = 0; i < kTile; ++i) half[kSide * i + j] += m[kSide * (kEven + i) + j];
  }
  for (int i = 0; i < kTile; ++i) {
    even_from_points(half + kSide * i, 1, out + kTile * i, 1);
    for (int j = 0; j < kTile; ++j) out[kTile * i + j] += half[kSide * i + kEven + j];
  }
  for (int i = 0; i < kTile && y0 + i < maps.height; ++i) {
    for (int j = 0; j < kTile && x0 + j < maps.width; ++j) {
      const int64_t cell = static_cast<int64_t>(y0 + i) * maps.width + x0 + j;
      store_lanes<kWhole>(maps.x + cell * maps.x_channels + c, count, out[kTile * i + j]);
    }
  }
}

static void up_transpose_output_tile(const UpMaps& maps, int row, int column, const float* const* slots) {
  for_channels(maps.x_channels, [&](auto whole, int c, int count) __attribute__((always_inline)) {
    write_x<whole.value>(maps, row * kTile, column * kTile, c, count, slots);
  });
}
