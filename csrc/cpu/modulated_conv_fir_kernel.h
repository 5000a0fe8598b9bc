// The FIR of a ×2 layer fused with the layer's epilogue, and the transpose of both, for a tile of one picture.
// Included by each_level.h once for each level; see there.
//
// A tile is computed row by row. A row of the FIR's input, as floats, is filtered along x into a window of the last
// rows, which is filtered along y: every input row is read once, and what lies between stays in the cache. Rows of
// scratch are [columns][padded channels], arranged, so that one loop filters all channels.

#include "channel_pairs.h"
#include "layer_cells.h"

DRAGGAN_INLINE int whole_pairs(int channels) { return (channels + kPair - 1) / kPair * kPair; }

DRAGGAN_INLINE void fill_zero(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kPair) store_pair(to + i, Pair{});
}

// Σ taps[j]·rows[j] for one pair of vectors. kTaps: how many taps there are; 0: as fir.count says.
template <int kTaps>
DRAGGAN_INLINE Pair filtered(const Fir& fir, const float* const* rows, int64_t at) {
  Pair sum{};
  for (int j = 0; j < (kTaps ? kTaps : fir.count); ++j) {
    const Pair value = load_pair(rows[j] + at);
    sum.first += fir.taps[j] * value.first;
    sum.second += fir.taps[j] * value.second;
  }
  return sum;
}

// Where a cell of the transposed convolution's whole output lies: even rows and columns are maps of their own.
template <typename Type>
DRAGGAN_INLINE Type* phase_cell(const FirTile& tile, int row, int column) {
  const int64_t width = tile.width / 2 + !(column & 1);
  return (Type*)tile.phases[row & 1][column & 1] + ((row >> 1) * width + (column >> 1)) * tile.layer.channels;
}

// The two directions. read_cell: one cell of the FIR's input, as floats; write_cell: one of its output, from the
// window.

template <typename Type>
struct FirActivate {
  FirTile tile;
};

template <typename Type>
DRAGGAN_INLINE void read_cell(const FirActivate<Type>& pass, int row, int column, float* to) {
  const Type* from = phase_cell<Type>(pass.tile, row, column);
  const int channels = pass.tile.layer.channels;
  int c = 0;
  for (; c + kPair <= channels; c += kPair) store_pair(to + c, load_pair(from + c));
  if (c < channels) store_pair(to + c, load_pair<false>(from + c, channels - c));
}

template <bool whole, typename Type>
DRAGGAN_INLINE void activate_pair(const FirTile& tile, int64_t at, int c, int count, float noise, Pair y) {
  const Pair x = activated(tile.layer, c, y, noise);
  store_pair<whole>((Type*)tile.x + at + c, count, x);
  if (tile.x_styled) store_pair<whole>((Type*)tile.x_styled + at + c, count, styled(tile.layer, c, x));
}

template <int kTaps, typename Type>
DRAGGAN_INLINE void write_cell(const FirActivate<Type>& pass, const Fir& fir, int row, int column,
                               const float* const* rows, int64_t from) {
  const FirTile& tile = pass.tile;
  const int channels = tile.layer.channels;
  const int64_t cell = (int64_t)row * tile.width + column, at = cell * channels;
  const float noise = noise_at(tile.layer, cell);
  int c = 0;
  for (; c + kPair <= channels; c += kPair) {
    activate_pair<true, Type>(tile, at, c, kPair, noise, filtered<kTaps>(fir, rows, from + c));
  }
  if (c < channels) {
    activate_pair<false, Type>(tile, at, c, channels - c, noise, filtered<kTaps>(fir, rows, from + c));
  }
}

template <typename Type>
struct FirActivateTranspose {
  FirTile tile;
};

template <typename Type>
DRAGGAN_INLINE void read_cell(const FirActivateTranspose<Type>& pass, int row, int column, float* to) {
  const FirTile& tile = pass.tile;
  const int channels = tile.layer.channels;
  const int64_t cell = (int64_t)row * tile.width + column, at = cell * channels;
  const Type *grad = (const Type*)tile.grad + at, *x = (const Type*)tile.x + at;
  const float noise = noise_at(tile.layer, cell);
  // The cells around a tile are computed here too, but belong to its neighbours' sums: theirs go nowhere.
  const bool own =
      row >= tile.first_row && row < tile.last_row && column >= tile.first_column && column < tile.last_column;
  const LayerSums sums = own ? tile.running : tile.discarded;
  int c = 0;
  for (; c + kPair <= channels; c += kPair) {
    store_pair(to + c, activated_transpose<true>(tile.layer, c, kPair, grad, x, noise, sums));
  }
  if (c < channels) {
    store_pair(to + c, activated_transpose<false>(tile.layer, c, channels - c, grad, x, noise, sums));
  }
}

template <typename Type>
DRAGGAN_INLINE void end_row(const FirActivate<Type>&) {}

template <typename Type>
DRAGGAN_INLINE void end_row(const FirActivateTranspose<Type>& pass) {
  add_and_clear(pass.tile.sums, pass.tile.running, pass.tile.layer.channels);
}

template <int kTaps, typename Type>
DRAGGAN_INLINE void write_cell(const FirActivateTranspose<Type>& pass, const Fir& fir, int row, int column,
                               const float* const* rows, int64_t from) {
  Type* to = phase_cell<Type>(pass.tile, row, column);
  const int channels = pass.tile.layer.channels;
  int c = 0;
  for (; c + kPair <= channels; c += kPair) store_pair(to + c, filtered<kTaps>(fir, rows, from + c));
  if (c < channels) store_pair<false>(to + c, channels - c, filtered<kTaps>(fir, rows, from + c));
}

// The arguments are copied: what could be changed by a store to scratch would be loaded anew after each.
template <int kTaps, typename Pass>
static void filter_tile(const Fir fir, const Pass pass, float* scratch) {
  const FirTile& tile = pass.tile;
  const int count = kTaps ? kTaps : fir.count, columns = tile.last_column - tile.first_column;
  const int cell = whole_pairs(tile.layer.channels);
  const int64_t row_floats = (int64_t)columns * cell;
  float *line = scratch, *window = line + (int64_t)(columns + count - 1) * cell;
  const float *shifted[kMaxTaps], *recent[kMaxTaps];
  for (int j = 0; j < count; ++j) shifted[j] = line + (int64_t)j * cell;
  const int left = tile.first_column - fir.before, top = tile.first_row - fir.before;
  const int rows = tile.last_row - tile.first_row + count - 1;
  for (int step = 0; step < rows; ++step) {
    float* newest = window + step % count * row_floats;
    if (top + step < 0 || top + step >= fir.height) {
      fill_zero(newest, row_floats);
    } else {
      for (int i = 0; i < columns + count - 1; ++i) {
        float* to = line + (int64_t)i * cell;
        if (left + i < 0 || left + i >= fir.width)
          fill_zero(to, cell);
        else
          read_cell(pass, top + step, left + i, to);
      }
      end_row(pass);
      for (int64_t i = 0; i < row_floats; i += kPair) store_pair(newest + i, filtered<kTaps>(fir, shifted, i));
    }
    if (step < count - 1) continue;
    for (int j = 0; j < count; ++j) recent[j] = window + (step + 1 + j) % count * row_floats;  // the oldest first
    for (int i = 0; i < columns; ++i) {
      write_cell<kTaps>(pass, fir, tile.first_row + step - count + 1, tile.first_column + i, recent, (int64_t)i * cell);
    }
  }
}

template <typename Pass>
static void filter_tile_by_taps(const Fir& fir, const FirTile& tile, float* scratch) {
  if (fir.count == 4) return filter_tile<4>(fir, Pass{tile}, scratch);
  return filter_tile<0>(fir, Pass{tile}, scratch);
}

static void fir_activate_tile(Element element, const Fir& fir, const FirTile& tile, float* scratch) {
  if (element == Element::bfloat16) return filter_tile_by_taps<FirActivate<BFloat16>>(fir, tile, scratch);
  return filter_tile_by_taps<FirActivate<Float32>>(fir, tile, scratch);
}

static void fir_activate_transpose_tile(Element element, const Fir& fir, const FirTile& tile, float* scratch) {
  clear(tile.sums, tile.layer.channels);
  clear(tile.running, tile.layer.channels);
  clear(tile.discarded, tile.layer.channels);
  if (element == Element::bfloat16) return filter_tile_by_taps<FirActivateTranspose<BFloat16>>(fir, tile, scratch);
  return filter_tile_by_taps<FirActivateTranspose<Float32>>(fir, tile, scratch);
}
