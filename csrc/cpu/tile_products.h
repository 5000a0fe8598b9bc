// Convolutions by tiles: each tile's inputs are transformed to some rows of small matrices, these are multiplied with
// constant weights, the products' rows are transformed to the tile's outputs. Only for csrc/cpu/<op>.cpp.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>

#include "modulated_conv.h"

namespace draggan::cpu {

constexpr int kPanel = 16;  // columns of a weight that lie side by side; see panels.h and kernels/winograd.py
// Tiles that go through all steps together: as many as keep what lies between in the cache, but enough for the weights
// that are read for them.
constexpr int64_t kScratchFloats = int64_t{1} << 19;
constexpr int64_t kLeastTiles = 24;

// Floats of the calling thread, kept from call to call: memory fresh from the system is cleared page by page, which
// took longer than the transforms.
inline float* scratch_of(int64_t count) {
  thread_local Floats floats;
  thread_local int64_t size = 0;
  if (count > size) {
    floats.reset();
    size = 0;  // also if there is no memory for more
    floats = uninitialised_floats(count);
    size = count;
  }
  return floats.get();
}

// A tile's rows ("slots") and the matrix to which each belongs.
template <int kSlots, int kMatrices>
struct SlotMap {
  std::array<int, kSlots> matrix{}, place{};  // place: among the rows of the same tile in the same matrix
  std::array<int, kMatrices> rows{};          // of a tile in each matrix

  template <typename MatrixOf>
  constexpr explicit SlotMap(MatrixOf matrix_of) {
    for (int slot = 0; slot < kSlots; ++slot) {
      matrix[slot] = matrix_of(slot);
      place[slot] = rows[matrix[slot]]++;
    }
  }
};

// panels: [kMatrices][panel_count][channels][kPanel]. multiply: multiply_panels of the level in use.
template <int kSlots, int kMatrices>
struct TileProducts {
  using Multiply = void(const float*, int64_t, int, const float*, int, int, float*, int64_t);

  const SlotMap<kSlots, kMatrices>& map;
  int channels, panel_count;
  const float* panels;
  Multiply* multiply_panels;

  // The matrices of `tiles` tiles from `first` on.
  struct Part {
    int64_t first, tiles;
    std::array<float*, kMatrices> factors, products;
  };

  int64_t made_channels() const { return static_cast<int64_t>(panel_count) * kPanel; }

  // subtle: a cache line more than it takes; a tile is written to all matrices at once, and at powers of two these
  // places would share one set of the cache.
  int64_t matrix_floats(int matrix, int64_t tiles, int64_t width) const {
    return (tiles * map.rows[matrix] * width + 15) / 16 * 16 + 16;
  }

  int64_t scratch_floats(int64_t tiles) const {
    int64_t total = 0;
    for (int matrix = 0; matrix < kMatrices; ++matrix)
      total += matrix_floats(matrix, tiles, channels) + matrix_floats(matrix, tiles, made_channels());
    return total;
  }

  Part part(int64_t first, int64_t tiles, float* scratch) const {
    Part part = {first, tiles, {}, {}};
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      part.factors[matrix] = scratch;
      scratch += matrix_floats(matrix, tiles, channels);
    }
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      part.products[matrix] = scratch;
      scratch += matrix_floats(matrix, tiles, made_channels());
    }
    return part;
  }

  // each(tile, the places of its rows) for the part's tiles begin … end.
  template <typename Each>
  void for_tiles(const Part& part, const std::array<float*, kMatrices>& matrices, int64_t width, int64_t begin,
                 int64_t end, const Each& each) const {
    for (int64_t at = begin; at < end; ++at) {
      float* slots[kSlots];
      for (int slot = 0; slot < kSlots; ++slot) {
        const int matrix = map.matrix[slot];
        slots[slot] = matrices[matrix] + (at * map.rows[matrix] + map.place[slot]) * width;
      }
      each(part.first + at, slots);
    }
  }

  // What the products of a part take, in rows times panels: they are shared out by it.
  int64_t work() const { return static_cast<int64_t>(kSlots) * panel_count; }

  // Those panels of the products that begin within begin … end of the work.
  void multiply(const Part& part, int64_t begin, int64_t end) const {
    int64_t before = 0;
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      const int64_t rows = map.rows[matrix];
      const auto panel_at = [&](int64_t work) {
        return static_cast<int>(std::clamp<int64_t>((work - before + rows - 1) / rows, 0, panel_count));
      };
      const int first = begin <= before ? 0 : panel_at(begin), last = end <= before ? 0 : panel_at(end);
      if (first < last) {
        multiply_panels(part.factors[matrix], part.tiles * rows, channels,
                        panels + static_cast<int64_t>(matrix) * panel_count * channels * kPanel, first, last,
                        part.products[matrix], made_channels());
      }
      before += rows * panel_count;
    }
  }

  // read(tile, slots): writes the rows of a tile; write(tile, slots): reads those of its products. From any thread.
  template <typename Read, typename Write>
  void run(int64_t count, const Read& read, const Write& write) const {
    const int64_t threads = at::get_num_threads();
    const int64_t most = std::max(kScratchFloats / scratch_floats(1), kLeastTiles);
    if (count >= threads * kLeastTiles || threads == 1)
      by_tiles(count, most, threads, read, write);
    else
      by_panels(count, most, read, write);
  }

 private:
  // Enough tiles for all threads: each takes some through all three steps.
  template <typename Read, typename Write>
  void by_tiles(int64_t count, int64_t most, int64_t threads, const Read& read, const Write& write) const {
    const int64_t share = (count + threads - 1) / threads;
    const int64_t chunks = threads * ((share + most - 1) / most), largest = (count + chunks - 1) / chunks;
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      float* const scratch = scratch_of(scratch_floats(largest));
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = count * chunk / chunks, here = count * (chunk + 1) / chunks - begin;
        const Part some = part(begin, here, scratch);
        for_tiles(some, some.factors, channels, 0, here, read);
        multiply(some, 0, work());
        for_tiles(some, some.products, made_channels(), 0, here, write);
      }
    });
  }

  // Few tiles: the products are shared out, so that every thread reads its part of the weights only.
  template <typename Read, typename Write>
  void by_panels(int64_t count, int64_t most, const Read& read, const Write& write) const {
    float* const scratch = scratch_of(scratch_floats(std::min(count, most)));
    for (int64_t begin = 0; begin < count; begin += most) {
      const Part some = part(begin, std::min(most, count - begin), scratch);
      at::parallel_for(0, some.tiles, 2, [&](int64_t first, int64_t last) {
        for_tiles(some, some.factors, channels, first, last, read);
      });
      at::parallel_for(0, work(), 1, [&](int64_t first, int64_t last) { multiply(some, first, last); });
      at::parallel_for(0, some.tiles, 2, [&](int64_t first, int64_t last) {
        for_tiles(some, some.products, made_channels(), first, last, write);
      });
    }
  }
};

// panels as the ops take them: [matrices, ⌈C'/16⌉, C, 16].
inline void check_panels(const Tensor& panels, int64_t matrices, int64_t channels, int64_t out_channels) {
  TORCH_CHECK(out_channels >= 1 && out_channels <= kMaxChannels, "out_channels must be from 1 to ", kMaxChannels,
              ", not ", out_channels, ".");
  const std::array<int64_t, 4> shape = {matrices, (out_channels + kPanel - 1) / kPanel, channels, kPanel};
  TORCH_CHECK(panels.device().is_cpu() && panels.scalar_type() == at::kFloat && panels.sizes() == shape &&
                  panels.is_contiguous(),
              "panels must be a contiguous float32 tensor on the CPU of the shape ", at::IntArrayRef(shape), ", not ",
              panels.scalar_type(), " ", panels.sizes(), " on ", panels.device(), ".");
}

inline void check_float_map(const char* name, const Tensor& map) {
  check_map(name, map);
  TORCH_CHECK(map.scalar_type() == at::kFloat, name, " must be float32, not ", map.scalar_type(), ".");
}

}  // namespace draggan::cpu
