// motion_supervision on CUDA: two launches. See kernels/reference.py.
//
// 1. A block per point and patch row; each warp takes 32 channels and walks along the row. It sums the loss, and the
//    gradient along x only: one value per column of cells, channel and row. No two warps write the same place.
// 2. A thread per cell and vector of channels adds up the rows of the patches that touch its cell, weighted along y, in
//    the order of points and rows; everywhere else it writes zeros. One more block per batch item sums the losses.
//
// So every sum has one fixed order, without atomics, and the gradient map is written exactly once.
// Both steps use that sampling is separable: rows are blended first, then columns.
//
// Floor: one write of the gradient map (16 MiB at [1, 256, 128, 128] float32: 4.2 µs at 4 TB/s). The patch adds, per
// point at the default size (r1 = 6 pixels at 1024²): 5·5 cells · 256 channels read (25 KB), 15 rows · 5 columns · 256
// floats of scratch written and read (77 KB each), 0.03 M pixel-channels · about 20 flops. Double precision, which
// decides what a patch holds, is slow on consumer GPUs: one warp of a block does it for all.
#pragma once

#include "common.cuh"

namespace draggan {
namespace cuda {

// Which cells a point's patch gives gradients to: [first, last] along each axis, none if first > last.
struct PatchWindow {
  int moves;  // 0: the point takes no part
  int first_column, last_column, first_row, last_row;
};

// A row of a patch: how many pixels it has, and how much each row of cells has of it. Shifted, it lies between two rows
// of U, `upper` and `lower`, each between the row of cells named and the next one; a row of U outside the image has no
// share.
struct PatchRow {
  int pixels;
  int upper, lower;
  float upper_share, upper_next_share, lower_share, lower_next_share;
};

template <typename T>
struct MotionSupervisionParams {
  Sizes sizes;
  int points;                     // N
  int radius;                     // r1
  FeatureView<const T> feature;   // [B, C, h, w]
  const float* handle_points;     // [B, N, 2]
  const float* target_points;     // [B, N, 2]
  const bool* active;             // [B, N]
  const int64_t* crop_origin;     // [B, 2]: the pixel (x, y) of the whole image that a crop begins at; null: no crops
  int whole_height, whole_width;  // of the image that the crops are of; without crops the image's
  FeatureView<T> grad_feature;    // [B, C, h, w]
  float* loss;                    // [B]
  PatchWindow* windows;           // scratch [B·N]
  PatchRow* rows;                 // scratch [B·N, patch_rows()]
  float* row_loss;                // scratch [B·N, patch_rows(), channel_chunks()]
  float* row_gradient;            // scratch [B·N, patch_rows(), patch_columns(), C], by columns of cells
};

constexpr int kPatchThreads = 256;
constexpr int kGatherThreads = 256;
constexpr int kGatherCells = 8;  // cells that a block of the second kernel writes

// Rows of pixels that a patch can have. Its reach is one above r1: the published circle is drawn on a stretched grid.
__host__ __device__ __forceinline__ int patch_rows(const Sizes& s, int radius) {
  return smaller(2 * patch_reach(radius) + 1, s.height);
}

// Columns of cells under a shifted row of a patch.
__host__ __device__ __forceinline__ int patch_columns(const Sizes& s, int radius) {
  return cells_under(smaller(2 * patch_reach(radius) + 1, s.width) + 1, s.cell_columns, s.width);
}

__host__ __device__ __forceinline__ int channel_chunks(const Sizes& s) {
  return static_cast<int>(ceil_div(s.channels, kLanes));
}

// The cells under some pixels of an axis; none: first > last.
struct CellRange {
  int first, last;
};

// Under the pixels [first, last] moved by `whole` and by a fraction more: up to last + whole + 1; clipped to the image.
__device__ __forceinline__ CellRange cells_of(int first, int last, int whole, int cells, int pixels) {
  const int from = larger(first + whole, 0), to = smaller(last + whole + 1, pixels - 1);
  if (first > last || from > to) return {0, -1};
  return {source_of(from, cells, pixels).cell, source_of(to, cells, pixels).next};
}

__device__ __forceinline__ int clamped(int pixel, int pixels) { return smaller(larger(pixel, 0), pixels - 1); }

// Two neighbouring columns of cells under a walk to the right; each is fetched once.
struct ColumnPair {
  int cell = -1, next = -1;
  float low = 0.0f, high = 0.0f;

  template <typename Fetch>
  __device__ __forceinline__ float at(const Source& source, const Fetch& fetch) {
    if (source.cell != cell) {
      low = source.cell == next ? high : fetch(source.cell);
      high = fetch(source.next);
      cell = source.cell;
      next = source.next;
    }
    return blend(low, high, source.fraction);
  }
};

// The transpose: what two neighbouring columns have received; a column is stored when the walk leaves it behind.
struct ColumnPairSum {
  int cell = -1, next = -1;
  float low = 0.0f, high = 0.0f;

  template <typename Store>
  __device__ __forceinline__ void add(const Source& source, float value, const Store& store) {
    if (source.cell != cell) {
      if (cell >= 0) store(cell, low);
      const bool adjacent = source.cell == next;
      if (!adjacent && next > cell) store(next, high);
      low = adjacent ? high : 0.0f;
      high = 0.0f;
      cell = source.cell;
      next = source.next;
    }
    low += (1.0f - source.fraction) * value;
    high += source.fraction * value;
  }

  template <typename Store>
  __device__ __forceinline__ void finish(const Store& store) const {
    if (cell >= 0) store(cell, low);
    if (next > cell) store(next, high);
  }
};

// What all warps of a block need to know of their patch row.
struct RowTask {
  Shift shift;
  int begin, end;              // the patch's pixels in this row lie side by side: [begin, end], none if begin > end
  CellRange columns;           // of the whole patch, shifted
  Source fixed, upper, lower;  // the row itself, and the two that it is shifted between
  bool upper_inside, lower_inside;
};

// Called by one warp. Also writes what the second kernel wants to know.
template <typename T>
__device__ __forceinline__ RowTask plan_row(const MotionSupervisionParams<T>& p, int point, int patch_row) {
  const Sizes& s = p.sizes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  RowTask task = {};
  task.end = -1;
  const float handle_x = p.handle_points[2 * point], handle_y = p.handle_points[2 * point + 1];
  if (p.active[point]) {
    task.shift = shift_of(handle_x, handle_y, p.target_points[2 * point], p.target_points[2 * point + 1]);
  }
  if (!task.shift.moves) {
    if (patch_row == 0 && lane == 0) p.windows[point] = {0, 0, -1, 0, -1};
    return task;  // the second kernel reads nothing else of such a point
  }

  const int reach = patch_reach(p.radius);
  const int pixel_x = nearest_pixel(handle_x), pixel_y = nearest_pixel(handle_y);
  const int first_x = larger(pixel_x - reach, 0), last_x = smaller(pixel_x + reach, s.width - 1);
  const int first_y = larger(pixel_y - reach, 0), last_y = smaller(pixel_y + reach, s.height - 1);
  task.columns = cells_of(first_x, last_x, task.shift.whole_x, s.cell_columns, s.width);
  if (patch_row == 0 && lane == 0) {
    const CellRange rows = cells_of(first_y, last_y, task.shift.whole_y, s.cell_rows, s.height);
    p.windows[point] = {1, task.columns.first, task.columns.last, rows.first, rows.last};
  }

  // The circle depends on where in the whole image a pixel lies. Origins are whole numbers, so nothing is rounded.
  const int batch = point / p.points;
  const int from_x = p.crop_origin == nullptr ? 0 : static_cast<int>(p.crop_origin[2 * batch]);
  const int from_y = p.crop_origin == nullptr ? 0 : static_cast<int>(p.crop_origin[2 * batch + 1]);
  const float centre_x = handle_x + static_cast<float>(from_x), centre_y = handle_y + static_cast<float>(from_y);
  const int y = first_y + patch_row;
  task.begin = last_x + 1;
  task.end = last_x;
  for (int x = first_x; y <= last_y && x <= last_x; x += kLanes) {
    const bool member = x + lane <= last_x && in_patch(x + lane + from_x, y + from_y, centre_x, centre_y, p.radius,
                                                       p.whole_width, p.whole_height);
    const unsigned members = __ballot_sync(kAllLanes, member);
    if (members == 0) continue;
    task.begin = smaller(task.begin, x + __ffs(static_cast<int>(members)) - 1);
    task.end = x + kLanes - 1 - __clz(static_cast<int>(members));
  }
  const int upper_y = y + task.shift.whole_y, lower_y = upper_y + 1;
  task.upper_inside = upper_y >= 0 && upper_y < s.height;
  task.lower_inside = lower_y >= 0 && lower_y < s.height;
  task.fixed = source_of(smaller(y, s.height - 1), s.cell_rows, s.height);
  task.upper = source_of(task.upper_inside ? upper_y : 0, s.cell_rows, s.height);
  task.lower = source_of(task.lower_inside ? lower_y : 0, s.cell_rows, s.height);
  if (lane == 0) {
    const float upper = task.upper_inside ? 1.0f - task.shift.fy : 0.0f;
    const float lower = task.lower_inside ? task.shift.fy : 0.0f;
    PatchRow row;
    row.pixels = larger(task.end - task.begin + 1, 0);
    row.upper = task.upper.cell;
    row.lower = task.lower.cell;
    row.upper_share = upper * (1.0f - task.upper.fraction);
    row.upper_next_share = upper * task.upper.fraction;
    row.lower_share = lower * (1.0f - task.lower.fraction);
    row.lower_next_share = lower * task.lower.fraction;
    p.rows[static_cast<int64_t>(point) * patch_rows(s, p.radius) + patch_row] = row;
  }
  return task;
}

template <typename T>
__global__ void __launch_bounds__(kPatchThreads, 2) motion_supervision_rows_kernel(const MotionSupervisionParams<T> p) {
  __shared__ RowTask shared_task;
  const Sizes& s = p.sizes;
  const int rows = patch_rows(s, p.radius), columns = patch_columns(s, p.radius), chunks = channel_chunks(s);
  const int point = static_cast<int>(blockIdx.x) / rows, patch_row = static_cast<int>(blockIdx.x) % rows;
  const int64_t row_slot = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  if (warp == 0) {
    const RowTask planned = plan_row(p, point, patch_row);
    if (lane == 0) shared_task = planned;
  }
  __syncthreads();
  const RowTask task = shared_task;
  if (!task.shift.moves) return;
  if (task.begin > task.end) {  // a row without pixels: its gradient is not read
    for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += kPatchThreads) {
      p.row_loss[row_slot * chunks + chunk] = 0.0f;
    }
    return;
  }

  const int batch = point / p.points;
  for (int chunk = warp; chunk < chunks; chunk += kPatchThreads / kLanes) {
    const bool has_channel = chunk * kLanes + lane < s.channels;
    const int channel = smaller(chunk * kLanes + lane, s.channels - 1);  // idle lanes repeat the last channel
    const T* const plane = p.feature.at(batch, channel, 0, 0);
    const auto cell = [&](int row, int column) {
      return to_float(plane[row * p.feature.row_stride + column * p.feature.column_stride]);
    };
    const auto rows_blended = [&](const Source& row, int column) {
      return blend(cell(row.cell, column), cell(row.next, column), row.fraction);
    };
    const auto fetch_fixed = [&](int column) { return rows_blended(task.fixed, column); };
    const auto fetch_moving = [&](int column) {
      return blend(task.upper_inside ? rows_blended(task.upper, column) : 0.0f,
                   task.lower_inside ? rows_blended(task.lower, column) : 0.0f, task.shift.fy);
    };
    float* const gradient = p.row_gradient + row_slot * columns * s.channels + channel;
    const auto store = [&](int column, float value) {
      if (has_channel) gradient[static_cast<int64_t>(column - task.columns.first) * s.channels] = value;
    };
    for (int column = task.columns.first; column <= task.columns.last; ++column) store(column, 0.0f);

    // A pixel x is compared with the blend of U at the shifted pixels x' = x + whole and x' + 1. The walk goes over the
    // x': each is sampled once, and receives from the pixel left of it (by its fraction) and from its own.
    ColumnPair fixed, moving;
    ColumnPairSum received;
    Source lane_shifted = {}, lane_fixed = {};  // of the pixels of the next 32 turns, one per lane
    Source left = {};                           // the source of x' − 1
    float loss = 0.0f, previous = 0.0f, sign_left = 0.0f;
    for (int x = task.begin; x <= task.end + 1; ++x) {
      const int turn = (x - task.begin) % kLanes;
      if (turn == 0) {
        lane_shifted = source_of(clamped(x + lane + task.shift.whole_x, s.width), s.cell_columns, s.width);
        lane_fixed = source_of(clamped(x + lane - 1, s.width), s.cell_columns, s.width);
      }
      const int shifted_x = x + task.shift.whole_x;
      const bool inside = shifted_x >= 0 && shifted_x < s.width;
      const Source shifted = source_of_lane(lane_shifted, turn, s.cell_columns);
      const Source still = source_of_lane(lane_fixed, turn, s.cell_columns);
      const float current = inside ? moving.at(shifted, fetch_moving) : 0.0f;
      float sign = 0.0f;
      if (x > task.begin) {
        const float difference = blend(previous, current, task.shift.fx) - fixed.at(still, fetch_fixed);
        loss += fabsf(difference);
        sign = difference > 0.0f ? 1.0f : (difference < 0.0f ? -1.0f : 0.0f);
        if (shifted_x >= 1 && shifted_x <= s.width) {  // x' − 1 lies inside, and has now heard from both its neighbours
          received.add(left, sign_left * task.shift.fx + sign * (1.0f - task.shift.fx), store);
        }
      }
      if (x == task.end + 1 && inside) received.add(shifted, sign * task.shift.fx, store);
      sign_left = sign;
      previous = current;
      left = shifted;
    }
    received.finish(store);
    loss = warp_sum(has_channel ? loss : 0.0f);
    if (lane == 0) p.row_loss[row_slot * chunks + chunk] = loss;
  }
}

// The loss of a batch item: its points' losses, each the mean over the pixels of its patch and the channels.
template <typename T>
__device__ void sum_patch_losses(const MotionSupervisionParams<T>& p, int batch) {
  __shared__ float warp_losses[kGatherThreads / kLanes];
  const int rows = patch_rows(p.sizes, p.radius), chunks = channel_chunks(p.sizes);
  const int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  float total = 0.0f;
  for (int n = warp; n < p.points; n += kGatherThreads / kLanes) {
    const int64_t point = static_cast<int64_t>(batch) * p.points + n;
    if (p.windows[point].moves == 0) continue;
    float loss = 0.0f;
    int pixels = 0;
    for (int i = lane; i < rows * chunks; i += kLanes) loss += p.row_loss[point * rows * chunks + i];
    for (int i = lane; i < rows; i += kLanes) pixels += p.rows[point * rows + i].pixels;
    loss = warp_sum(loss);
    pixels = warp_sum(pixels);
    total += loss / (static_cast<float>(larger(pixels, 1)) * static_cast<float>(p.sizes.channels));
  }
  if (lane == 0) warp_losses[warp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kGatherThreads / kLanes; ++i) sum += warp_losses[i];
    p.loss[batch] = sum;
  }
}

// How much of a patch row a row of cells has.
__device__ __forceinline__ float share_of(const PatchRow& row, int cell_row, int cells) {
  float share = 0.0f;
  if (row.upper == cell_row) share += row.upper_share;
  if (smaller(row.upper + 1, cells - 1) == cell_row) share += row.upper_next_share;
  if (row.lower == cell_row) share += row.lower_share;
  if (smaller(row.lower + 1, cells - 1) == cell_row) share += row.lower_next_share;
  return share;
}

// A vector of channels as it is stored: 16 bytes where kVector fills them.
template <typename T, int kVector>
struct __align__(sizeof(T) * kVector) Vector {
  T values[kVector];
};

// kVector > 1 asks for a gradient that is dense channels-last, with C a multiple of it.
template <typename T, int kVector>
__global__ void __launch_bounds__(kGatherThreads, 3)
    motion_supervision_gather_kernel(const MotionSupervisionParams<T> p) {
  const Sizes& s = p.sizes;
  const int cells = s.cell_rows * s.cell_columns;
  const int tiles = static_cast<int>(ceil_div(cells, kGatherCells));
  const int batch = static_cast<int>(blockIdx.x) / (tiles + 1), tile = static_cast<int>(blockIdx.x) % (tiles + 1);
  if (tile == tiles) {
    sum_patch_losses(p, batch);
    return;
  }
  const int first_cell = tile * kGatherCells, last_cell = smaller(first_cell + kGatherCells, cells) - 1;
  const int first_row = first_cell / s.cell_columns, last_row = last_cell / s.cell_columns;
  const bool one_row = first_row == last_row;
  const int first_column = one_row ? first_cell % s.cell_columns : 0;
  const int last_column = one_row ? last_cell % s.cell_columns : s.cell_columns - 1;
  const PatchWindow* const windows = p.windows + static_cast<int64_t>(batch) * p.points;
  bool touches = false;
  for (int n = static_cast<int>(threadIdx.x); n < p.points; n += kGatherThreads) {
    const PatchWindow window = windows[n];
    touches |= window.first_row <= last_row && window.last_row >= first_row && window.first_column <= last_column &&
               window.last_column >= first_column;
  }
  const bool touched = __syncthreads_or(touches) != 0;

  const int rows = patch_rows(s, p.radius), columns = patch_columns(s, p.radius);
  const int vectors = s.channels / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < (last_cell - first_cell + 1) * vectors; i += kGatherThreads) {
    const int cell = first_cell + i / vectors, channel = i % vectors * kVector;
    const int cell_row = cell / s.cell_columns, cell_column = cell % s.cell_columns;
    float sum[kVector] = {};
    for (int n = 0; touched && n < p.points; ++n) {
      const PatchWindow window = windows[n];
      if (cell_row < window.first_row || cell_row > window.last_row || cell_column < window.first_column ||
          cell_column > window.last_column) {
        continue;
      }
      const int64_t first_slot = (static_cast<int64_t>(batch) * p.points + n) * rows;
      const int64_t stride = static_cast<int64_t>(columns) * s.channels;
      const float* gradient =
          p.row_gradient + first_slot * stride + (cell_column - window.first_column) * s.channels + channel;
      float patch[kVector] = {};
      int pixels = 0;
#pragma unroll 4
      for (int row = 0; row < rows; ++row, gradient += stride) {
        const PatchRow patch_row = p.rows[first_slot + row];
        pixels += patch_row.pixels;
        const float share = patch_row.pixels == 0 ? 0.0f : share_of(patch_row, cell_row, s.cell_rows);
        if (share == 0.0f) continue;
#pragma unroll
        for (int v = 0; v < kVector; ++v) patch[v] += share * gradient[v];
      }
      const float terms = static_cast<float>(larger(pixels, 1)) * static_cast<float>(s.channels);
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[v] += patch[v] / terms;
    }
    Vector<T, kVector> out;
#pragma unroll
    for (int v = 0; v < kVector; ++v) out.values[v] = from_float<T>(sum[v]);
    *reinterpret_cast<Vector<T, kVector>*>(p.grad_feature.at(batch, channel, cell_row, cell_column)) = out;
  }
}

template <typename T, typename Launch>
void launch_motion_supervision(const MotionSupervisionParams<T>& p, const Launch& launch) {
  constexpr int kVector = 16 / sizeof(T);
  const Sizes& s = p.sizes;
  const int64_t points = static_cast<int64_t>(s.batch) * p.points;
  launch(motion_supervision_rows_kernel<T>, points * patch_rows(s, p.radius), kPatchThreads, p);
  const int64_t cells = static_cast<int64_t>(s.cell_rows) * s.cell_columns;
  const int64_t gather_blocks = s.batch * (ceil_div(cells, kGatherCells) + 1);
  const FeatureView<T>& grad = p.grad_feature;
  const bool vectors = s.channels % kVector == 0 && grad.channel_stride == 1 && grad.column_stride % kVector == 0 &&
                       grad.row_stride % kVector == 0 && grad.batch_stride % kVector == 0 &&
                       reinterpret_cast<uintptr_t>(grad.data) % 16 == 0;
  if (vectors) {
    launch(motion_supervision_gather_kernel<T, kVector>, gather_blocks, kGatherThreads, p);
  } else {
    launch(motion_supervision_gather_kernel<T, 1>, gather_blocks, kGatherThreads, p);
  }
}

}  // namespace cuda
}  // namespace draggan
