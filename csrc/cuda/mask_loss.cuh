// mask_loss on CUDA: two launches. See kernels/reference.py.
//
// D = feature − feature0. A quad is the square between four neighbouring cells, owned by its upper left one; over the
// pixels of a quad, |U(D)| is linear in its corners wherever they share a sign. Its gradient there is that sign times
// four sums over the quad's fixed pixels, the same for all channels. Only quads with mixed signs are walked pixel by
// pixel. The loss needs no sum of its own: it is linear along rays, so it equals ⟨D, gradient⟩.
//
// 1. A block per 32 quads of a row computes the four sums: first down the columns of pixels, then across each quad's
//    columns. It also clears the counters of step 2.
// 2. A block per tile of 8 × 8 cells and 32 channels: D with a border into shared memory, a warp per row of quads walks
//    it from left to right (a lane per channel), then every cell adds what the quads above and below gave it. A quad
//    on the border of two tiles is computed by both. The last block of a batch item to finish sums all partial losses
//    in their fixed order: no atomic adds on floats, and the same bits every time.
//
// Floor at [1, 256, 128, 128] float32, 1024²: features 2 · 16 MiB and mask 4 MiB read, gradient 16 MiB written: 52 MiB,
// 13.6 µs at 4 TB/s (a tile with nothing fixed reads no features). Arithmetic: about 30 flops per quad and channel
// where signs agree (0.2 GFLOP with the borders), 64 pixels · 5 more where they do not (1.7 GFLOP if none agree).
#pragma once

#include "common.cuh"

namespace draggan {
namespace cuda {

template <typename T>
struct MaskLossParams {
  Sizes sizes;
  FeatureView<const T> feature, feature0;  // [B, C, h, w]
  const float* movable_mask;               // [B, H, W]
  FeatureView<T> grad_feature;             // [B, C, h, w]
  float* loss;                             // [B]
  float4* quad_sums;                       // scratch [B, h, w], for the corners (x, y): 00, 10, 01, 11
  float* partial_losses;                   // scratch [B, mask_blocks()]
  unsigned* finished_blocks;               // scratch [B]
};

constexpr int kSumThreads = 256;                   // columns of pixels that step 1 holds at a time
constexpr int kSumQuads = 32;                      // quads of a block of it
constexpr int kMaskTile = 8;                       // cells along a side of a tile
constexpr int kMaskQuads = kMaskTile + 1;          // quads along it: one more to the left and above
constexpr int kMaskCells = kMaskTile + 2;          // cells under those quads
constexpr int kMaskThreads = kMaskQuads * kLanes;  // a warp per row of quads
constexpr int kMaskStage = 64;                     // pixels of a quad that a warp holds at a time

__host__ __device__ __forceinline__ int mask_tile_columns(const Sizes& s) {
  return static_cast<int>(ceil_div(s.cell_columns, kMaskTile));
}

// Blocks per batch item: tiles × groups of 32 channels, the groups fastest (they share the tile's mask).
__host__ __device__ __forceinline__ int mask_blocks(const Sizes& s) {
  return static_cast<int>(ceil_div(s.cell_rows, kMaskTile) * mask_tile_columns(s) * ceil_div(s.channels, kLanes));
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads) mask_loss_sums_kernel(const MaskLossParams<T> p) {
  __shared__ int begin_x[kSumQuads + 1];       // the quads' first columns of pixels
  __shared__ float row_fraction[kSumThreads];  // of the quads' rows of pixels
  __shared__ float upper[kSumThreads],
      lower[kSumThreads];  // what is fixed of a column of pixels, weighted by 1 − fy and fy
  __shared__ float column_fraction[kSumThreads];

  const Sizes& s = p.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) {
    for (int i = thread; i < s.batch; i += kSumThreads) p.finished_blocks[i] = 0;
  }
  const int groups = static_cast<int>(ceil_div(s.cell_columns, kSumQuads));
  const int64_t quad_row = blockIdx.x / groups;  // of the whole batch
  const int first_quad = static_cast<int>(blockIdx.x % groups) * kSumQuads;
  const int quads = smaller(kSumQuads, s.cell_columns - first_quad);
  const int batch = static_cast<int>(quad_row / s.cell_rows), row = static_cast<int>(quad_row % s.cell_rows);
  const int begin_y = first_pixel(row, s.cell_rows, s.height), end_y = first_pixel(row + 1, s.cell_rows, s.height);
  if (thread <= quads) begin_x[thread] = first_pixel(first_quad + thread, s.cell_columns, s.width);
  const float* const mask = p.movable_mask + static_cast<int64_t>(batch) * s.height * s.width;

  float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);  // of the quad of this thread, if it has one
  for (int y0 = begin_y; y0 < end_y; y0 += kSumThreads) {
    __syncthreads();
    const int rows_here = smaller(kSumThreads, end_y - y0);
    if (thread < rows_here) row_fraction[thread] = source_of(y0 + thread, s.cell_rows, s.height).fraction;
    for (int x0 = begin_x[0]; x0 < begin_x[quads]; x0 += kSumThreads) {
      __syncthreads();
      const int x = x0 + thread;
      if (x < begin_x[quads]) {
        float all = 0.0f, weighted = 0.0f;
#pragma unroll 4
        for (int i = 0; i < rows_here; ++i) {
          const float fixed = 1.0f - mask[static_cast<int64_t>(y0 + i) * s.width + x];
          all += fixed * (1.0f - row_fraction[i]);
          weighted += fixed * row_fraction[i];
        }
        upper[thread] = all;
        lower[thread] = weighted;
        column_fraction[thread] = source_of(x, s.cell_columns, s.width).fraction;
      }
      __syncthreads();
      if (thread < quads) {
        const int end = smaller(begin_x[thread + 1] - x0, kSumThreads);
        for (int i = larger(begin_x[thread] - x0, 0); i < end; ++i) {
          sums.x += upper[i] * (1.0f - column_fraction[i]);
          sums.y += upper[i] * column_fraction[i];
          sums.z += lower[i] * (1.0f - column_fraction[i]);
          sums.w += lower[i] * column_fraction[i];
        }
      }
    }
  }
  if (thread < quads) p.quad_sums[quad_row * s.cell_columns + first_quad + thread] = sums;
}

__device__ __forceinline__ bool has_fixed_pixels(const float4& sums) {
  // Weights and fixed shares are not negative: the sums are all zero only if every fixed share is.
  return sums.x != 0.0f || sums.y != 0.0f || sums.z != 0.0f || sums.w != 0.0f;
}

// The corners of a quad, or what they receive.
struct Quad {
  float v00, v10, v01, v11;
};

struct StagedPixel {
  float fixed, fx;
};

// Pixels of a quad that a warp holds, in whole rows where they fit.
struct PixelStage {
  StagedPixel pixels[kMaskStage];
  float fy[kMaskStage];  // of the rows
};

// The gradient of a quad whose corners do not share a sign, by its pixels; called by whole warps, a channel per lane.
__device__ __forceinline__ Quad walk_quad(const Quad& d, const Sizes& s, const float* mask, int begin_x, int end_x,
                                          int begin_y, int end_y, PixelStage& stage) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  // Whole rows of the quad where they fit; where a row does not, a part of it.
  const int columns = larger(smaller(end_x - begin_x, kMaskStage), 1), rows = kMaskStage / columns;
  Quad received = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int y0 = begin_y; y0 < end_y; y0 += rows) {
    const int rows_here = smaller(rows, end_y - y0);
    for (int x0 = begin_x; x0 < end_x; x0 += columns) {
      const int columns_here = smaller(columns, end_x - x0);
      __syncwarp();
      for (int i = lane; i < rows_here * columns; i += kLanes) {
        const int x = x0 + i % columns, y = y0 + i / columns;
        if (x < end_x) {
          stage.pixels[i] = {1.0f - mask[static_cast<int64_t>(y) * s.width + x],
                             source_of(x, s.cell_columns, s.width).fraction};
        }
      }
      for (int row = lane; row < rows_here; row += kLanes) {
        stage.fy[row] = source_of(y0 + row, s.cell_rows, s.height).fraction;
      }
      __syncwarp();
      for (int row = 0; row < rows_here; ++row) {
        const float fy = stage.fy[row];
        const float left = blend(d.v00, d.v01, fy), right = blend(d.v10, d.v11, fy);
        float all = 0.0f, right_part = 0.0f;
#pragma unroll 4
        for (int column = 0; column < columns_here; ++column) {
          const StagedPixel pixel = stage.pixels[row * columns + column];
          const float value = blend(left, right, pixel.fx);
          const float push = value > 0.0f ? pixel.fixed : (value < 0.0f ? -pixel.fixed : 0.0f);
          all += push;
          right_part += push * pixel.fx;
        }
        const float left_part = all - right_part;
        received.v00 += (1.0f - fy) * left_part;
        received.v10 += (1.0f - fy) * right_part;
        received.v01 += fy * left_part;
        received.v11 += fy * right_part;
      }
    }
  }
  return received;
}

template <typename T>
__global__ void __launch_bounds__(kMaskThreads, 3) mask_loss_kernel(const MaskLossParams<T> p) {
  __shared__ float change[kMaskCells][kMaskCells][kLanes];    // D
  __shared__ float from_below[kMaskTile][kMaskTile][kLanes];  // what a cell received of the quads below it
  __shared__ float from_above[kMaskTile][kMaskTile][kLanes];  // and above
  __shared__ float4 sums[kMaskQuads][kMaskQuads];
  __shared__ int begin_x[kMaskQuads + 1], begin_y[kMaskQuads + 1];  // first pixels of the quads' columns and rows
  __shared__ PixelStage stage[kMaskQuads];
  __shared__ float warp_losses[kMaskQuads];
  __shared__ bool is_last;

  const Sizes& s = p.sizes;
  const int blocks = mask_blocks(s), tile_columns = mask_tile_columns(s);
  const int chunks = static_cast<int>(ceil_div(s.channels, kLanes));
  const int batch = static_cast<int>(blockIdx.x) / blocks, block = static_cast<int>(blockIdx.x) % blocks;
  const int tile = block / chunks;
  const int top = tile / tile_columns * kMaskTile, left = tile % tile_columns * kMaskTile;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes, lane = thread % kLanes;
  const bool has_channel = block % chunks * kLanes + lane < s.channels;
  const int channel = smaller(block % chunks * kLanes + lane, s.channels - 1);  // idle lanes repeat the last channel

  // Quad (row, column) of the tile is quad (top − 1 + row, left − 1 + column) of the map.
  bool fixed_here = false;
  for (int i = thread; i < kMaskQuads * kMaskQuads; i += kMaskThreads) {
    const int row = top - 1 + i / kMaskQuads, column = left - 1 + i % kMaskQuads;
    float4 quad = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row >= 0 && row < s.cell_rows && column >= 0 && column < s.cell_columns) {
      quad = p.quad_sums[(static_cast<int64_t>(batch) * s.cell_rows + row) * s.cell_columns + column];
    }
    sums[i / kMaskQuads][i % kMaskQuads] = quad;
    fixed_here |= has_fixed_pixels(quad);
  }
  if (thread <= kMaskQuads) {
    begin_x[thread] = first_pixel(smaller(left - 1 + thread, s.cell_columns), s.cell_columns, s.width);
    begin_y[thread] = first_pixel(smaller(top - 1 + thread, s.cell_rows), s.cell_rows, s.height);
  }
  const bool any_fixed = __syncthreads_or(fixed_here) != 0;

  float loss = 0.0f;
  if (any_fixed) {
#pragma unroll 4
    for (int i = warp; i < kMaskCells * kMaskCells; i += kMaskQuads) {
      // Cells beyond the map are read by no quad but as the last cell's neighbour, which is the last cell itself.
      const int row = smaller(larger(top - 1 + i / kMaskCells, 0), s.cell_rows - 1);
      const int column = smaller(larger(left - 1 + i % kMaskCells, 0), s.cell_columns - 1);
      change[i / kMaskCells][i % kMaskCells][lane] =
          to_float(*p.feature.at(batch, channel, row, column)) - to_float(*p.feature0.at(batch, channel, row, column));
    }
    __syncthreads();

    const float* const mask = p.movable_mask + static_cast<int64_t>(batch) * s.height * s.width;
    float above_right = 0.0f, below_right = 0.0f;  // what the quad on the left gave to this quad's left corners
    for (int column = 0; column < kMaskQuads; ++column) {
      const float4 share = sums[warp][column];
      Quad received = {0.0f, 0.0f, 0.0f, 0.0f};
      if (has_fixed_pixels(share)) {
        const Quad d = {change[warp][column][lane], change[warp][column + 1][lane], change[warp + 1][column][lane],
                        change[warp + 1][column + 1][lane]};
        const bool positive = d.v00 > 0.0f && d.v10 > 0.0f && d.v01 > 0.0f && d.v11 > 0.0f;
        const bool negative = d.v00 < 0.0f && d.v10 < 0.0f && d.v01 < 0.0f && d.v11 < 0.0f;
        const bool zero = d.v00 == 0.0f && d.v10 == 0.0f && d.v01 == 0.0f && d.v11 == 0.0f;
        const float sign = positive ? 1.0f : (negative ? -1.0f : 0.0f);
        received = {sign * share.x, sign * share.y, sign * share.z, sign * share.w};
        const bool mixed = !(positive || negative || zero);
        if (__any_sync(kAllLanes, mixed)) {
          const Quad walked = walk_quad(d, s, mask, begin_x[column], begin_x[column + 1], begin_y[warp],
                                        begin_y[warp + 1], stage[warp]);
          if (mixed) received = walked;
        }
        if (warp > 0 && column > 0) {  // every quad of the map counts in one tile only
          loss += d.v00 * received.v00 + d.v10 * received.v10 + d.v01 * received.v01 + d.v11 * received.v11;
        }
      }
      if (column > 0) {
        if (warp > 0) from_below[warp - 1][column - 1][lane] = above_right + received.v00;
        if (warp < kMaskTile) from_above[warp][column - 1][lane] = below_right + received.v01;
      }
      above_right = received.v10;
      below_right = received.v11;
    }
    __syncthreads();
  }

  const float scale =
      1.0f / (static_cast<float>(s.channels) * static_cast<float>(s.height) * static_cast<float>(s.width));
  for (int i = warp; i < kMaskTile * kMaskTile; i += kMaskQuads) {
    const int row = i / kMaskTile, column = i % kMaskTile;
    if (!has_channel || top + row >= s.cell_rows || left + column >= s.cell_columns) continue;
    const float gradient = any_fixed ? scale * (from_above[row][column][lane] + from_below[row][column][lane]) : 0.0f;
    *p.grad_feature.at(batch, channel, top + row, left + column) = from_float<T>(gradient);
  }

  loss = warp_sum(has_channel ? loss : 0.0f);
  if (lane == 0) warp_losses[warp] = loss;
  __syncthreads();
  if (thread == 0) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaskQuads; ++i) sum += warp_losses[i];
    p.partial_losses[static_cast<int64_t>(batch) * blocks + block] = sum;
    __threadfence();  // the partial loss is seen by all before the count is
    is_last = atomicAdd(&p.finished_blocks[batch], 1u) == static_cast<unsigned>(blocks - 1);
  }
  __syncthreads();
  if (!is_last) return;

  __threadfence();
  const volatile float* const partial = p.partial_losses + static_cast<int64_t>(batch) * blocks;  // past the L1 cache
  float total = 0.0f;
  for (int i = thread; i < blocks; i += kMaskThreads) total += partial[i];
  total = warp_sum(total);
  if (lane == 0) warp_losses[warp] = total;
  __syncthreads();
  if (thread == 0) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaskQuads; ++i) sum += warp_losses[i];
    p.loss[batch] = scale * sum;
  }
}

template <typename T, typename Launch>
void launch_mask_loss(const MaskLossParams<T>& p, const Launch& launch) {
  const Sizes& s = p.sizes;
  const int64_t quad_rows = static_cast<int64_t>(s.batch) * s.cell_rows;
  launch(mask_loss_sums_kernel<T>, quad_rows * ceil_div(s.cell_columns, kSumQuads), kSumThreads, p);
  launch(mask_loss_kernel<T>, static_cast<int64_t>(s.batch) * mask_blocks(s), kMaskThreads, p);
}

}  // namespace cuda
}  // namespace draggan
