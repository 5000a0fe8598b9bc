// point_tracking on CUDA: two launches. See kernels/reference.py.
//
// 1. A block per point and window row (and per 64 pixels of it, if it is longer). The row's two rows of cells are
//    blended once, into shared memory, [column, channel]; a pixel is then one blend and one difference per channel. A
//    pixel's channels are spread over four threads, so that a row of 49 pixels keeps 196 threads busy.
// 2. A warp per point takes the best of its rows.
//
// Work at the default size (r2 = 24 pixels at 1024², C = 256, h = w = 128), per point: 49 rows × (2·9 cells · 256) =
// 226 k cell reads (900 KB, nine tenths of them L2 hits: the window is 81 KB, the floor), 49·49·256·4 = 2.5 M flops.
// Both are far below a microsecond: latency and the two launches decide.
//
// Distances are summed over the channels in one order, the same for every pixel, so that equal pixels tie exactly.
#pragma once

#include "common.cuh"

namespace draggan {
namespace cuda {

template <typename T>
struct PointTrackingParams {
  Sizes sizes;
  int points;                    // N
  int radius;                    // r2
  FeatureView<const T> feature;  // [B, C, h, w]
  const float* reference;        // [B, N, C]
  const float* handle_points;    // [B, N, 2]
  const bool* active;            // [B, N]
  float* moved;                  // [B, N, 2]
  float* distance;               // [B, N]
  float* best_distance;          // scratch [B·N, track_candidates()]
  int* best_pixel;               // scratch, likewise: y·W + x, or −1
};

constexpr int kTrackPixels = 64;  // pixels of a window row that a block takes
constexpr int kTrackSlices = 4;   // threads that share the channels of a pixel
constexpr int kTrackThreads = kTrackPixels * kTrackSlices;
constexpr int kTrackColumns = kTrackPixels + 2;  // columns of cells that a block can hold
constexpr int kTrackStage = kTrackColumns * 36;  // floats of shared memory for them: at least 32 channels of each
constexpr int kTrackChannels = 512;              // channels held at a time, at most
constexpr int kTrackVector = 4;                  // channels per shared-memory access
constexpr int kTrackReduceThreads = 128;

// How many pixels of a row a block takes: as many as its columns of cells allow (fewer where the feature map is wider
// than the image).
__host__ __device__ __forceinline__ int track_pixels(const Sizes& s) {
  return smaller(kTrackPixels, 1 + (kTrackColumns - 2) * s.width / s.cell_columns);
}

__host__ __device__ __forceinline__ int track_rows(const Sizes& s, int radius) {
  return smaller(2 * radius + 1, s.height);
}

__host__ __device__ __forceinline__ int track_row_blocks(const Sizes& s, int radius) {
  return static_cast<int>(ceil_div(smaller(2 * radius + 1, s.width), track_pixels(s)));
}

// Blocks, and so candidates, per point.
__host__ __device__ __forceinline__ int track_candidates(const Sizes& s, int radius) {
  return track_rows(s, radius) * track_row_blocks(s, radius);
}

// The window of a handle along one axis, clipped to the image: [first, last], empty if first > last.
struct TrackRange {
  int first, last;
};

__device__ __forceinline__ TrackRange track_range(int pixel, int radius, int pixels) {
  return {larger(pixel - radius, 0), smaller(pixel + radius, pixels - 1)};
}

// Whether a window is searched for a point. One whose coordinates are not finite has none.
template <typename T>
__device__ __forceinline__ bool track_has_window(const PointTrackingParams<T>& p, int point) {
  return p.active[point] && is_finite(p.handle_points[2 * point]) && is_finite(p.handle_points[2 * point + 1]);
}

struct TrackCandidate {
  float distance;
  int pixel;  // y·W + x: smaller comes first in row-major order; −1: none
};

// Whether a beats b: nearer, or as near and earlier. A distance that is not a number beats all, as in torch.argmin.
__device__ __forceinline__ bool track_beats(const TrackCandidate& a, const TrackCandidate& b) {
  if (a.pixel < 0 || b.pixel < 0) return a.pixel > b.pixel;
  const float key_a = a.distance >= 0.0f ? a.distance : -1.0f, key_b = b.distance >= 0.0f ? b.distance : -1.0f;
  return key_a < key_b || (key_a == key_b && a.pixel < b.pixel);
}

__device__ __forceinline__ TrackCandidate track_warp_best(TrackCandidate best) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const TrackCandidate other = {__shfl_xor_sync(kAllLanes, best.distance, step),
                                  __shfl_xor_sync(kAllLanes, best.pixel, step)};
    if (track_beats(other, best)) best = other;
  }
  return best;
}

template <typename T>
__global__ void __launch_bounds__(kTrackThreads, 3) point_tracking_rows_kernel(const PointTrackingParams<T> p) {
  __shared__ __align__(16) float stage[kTrackStage];
  __shared__ __align__(16) float wanted[kTrackChannels];
  __shared__ float partial[kTrackSlices][kTrackPixels];
  __shared__ TrackCandidate warp_best[kTrackPixels / kLanes];

  const Sizes& s = p.sizes;
  const int candidates = track_candidates(s, p.radius), row_blocks = track_row_blocks(s, p.radius);
  const int point = static_cast<int>(blockIdx.x) / candidates, candidate = static_cast<int>(blockIdx.x) % candidates;
  const int64_t slot = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  if (!track_has_window(p, point)) return;  // the second kernel does not read its candidates either

  const TrackRange rows = track_range(nearest_pixel(p.handle_points[2 * point + 1]), p.radius, s.height);
  const TrackRange columns = track_range(nearest_pixel(p.handle_points[2 * point]), p.radius, s.width);
  const int y = rows.first + candidate / row_blocks;
  const int first_x = columns.first + candidate % row_blocks * track_pixels(s);
  if (y > rows.last || first_x > columns.last) {
    if (thread == 0) p.best_pixel[slot] = -1;
    return;
  }
  const int last_x = smaller(columns.last, first_x + track_pixels(s) - 1);

  const Source row = source_of(y, s.cell_rows, s.height);
  const int first_cell = source_of(first_x, s.cell_columns, s.width).cell;
  const int cells = source_of(last_x, s.cell_columns, s.width).next - first_cell + 1;
  // Channels held at a time; padding each column by one vector keeps the columns in different banks.
  const int room = (kTrackStage / cells - kTrackVector) / (kTrackSlices * kTrackVector) * (kTrackSlices * kTrackVector);
  const int channels_held = smaller(smaller(room, kTrackChannels), static_cast<int>(ceil_div(s.channels, 16)) * 16);
  const int pitch = channels_held + kTrackVector;

  const int pixel = thread % kTrackPixels, slice = thread / kTrackPixels;
  const int x = smaller(first_x + pixel, last_x);  // idle threads repeat the last pixel
  const Source column = source_of(x, s.cell_columns, s.width);
  const float* left = stage + (column.cell - first_cell) * pitch;
  const float* right = stage + (column.next - first_cell) * pitch;
  const int batch = point / p.points;
  const float* reference = p.reference + static_cast<int64_t>(point) * s.channels;
  // Neighbouring threads read neighbouring elements: of one cell, or of one channel where that is how they lie.
  const bool channels_inner = p.feature.channel_stride <= p.feature.column_stride;
  const int outer = thread / kLanes, inner = thread % kLanes;

  float sum = 0.0f;
  for (int first_channel = 0; first_channel < s.channels; first_channel += channels_held) {
    __syncthreads();
    const auto fetch = [&](int held, int cell) {
      const int channel = first_channel + held;
      float value = 0.0f;
      if (channel < s.channels) {
        value = blend(to_float(*p.feature.at(batch, channel, row.cell, first_cell + cell)),
                      to_float(*p.feature.at(batch, channel, row.next, first_cell + cell)), row.fraction);
      }
      stage[cell * pitch + held] = value;
    };
    if (channels_inner) {
      for (int cell = outer; cell < cells; cell += kTrackThreads / kLanes) {
#pragma unroll 4
        for (int held = inner; held < channels_held; held += kLanes) fetch(held, cell);
      }
    } else {
      for (int held = outer; held < channels_held; held += kTrackThreads / kLanes) {
        for (int cell = inner; cell < cells; cell += kLanes) fetch(held, cell);
      }
    }
    for (int held = thread; held < channels_held; held += kTrackThreads) {
      wanted[held] = first_channel + held < s.channels ? reference[first_channel + held] : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int held = slice * kTrackVector; held < channels_held; held += kTrackSlices * kTrackVector) {
      const float4 a = *reinterpret_cast<const float4*>(left + held);
      const float4 b = *reinterpret_cast<const float4*>(right + held);
      const float4 r = *reinterpret_cast<const float4*>(wanted + held);
      const float dx = blend(a.x, b.x, column.fraction) - r.x, dy = blend(a.y, b.y, column.fraction) - r.y;
      const float dz = blend(a.z, b.z, column.fraction) - r.z, dw = blend(a.w, b.w, column.fraction) - r.w;
      sum += dx * dx;
      sum += dy * dy;
      sum += dz * dz;
      sum += dw * dw;
    }
  }
  partial[slice][pixel] = sum;
  __syncthreads();

  if (thread < kTrackPixels) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kTrackSlices; ++i) squares += partial[i][pixel];
    TrackCandidate best = {sqrtf(squares), first_x + pixel <= last_x ? y * s.width + x : -1};
    best = track_warp_best(best);
    if (thread % kLanes == 0) warp_best[thread / kLanes] = best;
  }
  __syncthreads();
  if (thread == 0) {
    TrackCandidate best = warp_best[0];
#pragma unroll
    for (int i = 1; i < kTrackPixels / kLanes; ++i) {
      if (track_beats(warp_best[i], best)) best = warp_best[i];
    }
    p.best_distance[slot] = best.distance;
    p.best_pixel[slot] = best.pixel;
  }
}

template <typename T>
__global__ void __launch_bounds__(kTrackReduceThreads) point_tracking_best_kernel(const PointTrackingParams<T> p) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int point = static_cast<int>(blockIdx.x) * (kTrackReduceThreads / kLanes) + thread / kLanes;
  if (point >= p.sizes.batch * p.points) return;
  TrackCandidate best = {INFINITY, -1};
  if (track_has_window(p, point)) {
    const int candidates = track_candidates(p.sizes, p.radius);
    for (int i = lane; i < candidates; i += kLanes) {
      const int64_t slot = static_cast<int64_t>(point) * candidates + i;
      const int pixel = p.best_pixel[slot];
      const TrackCandidate candidate = {pixel < 0 ? INFINITY : p.best_distance[slot], pixel};
      if (track_beats(candidate, best)) best = candidate;
    }
    best = track_warp_best(best);
  }
  if (lane == 0) {
    // A point that is not active stays, at distance 0; one whose window holds no pixel stays, infinitely far.
    const bool found = best.pixel >= 0;
    p.moved[2 * point] = found ? static_cast<float>(best.pixel % p.sizes.width) : p.handle_points[2 * point];
    p.moved[2 * point + 1] = found ? static_cast<float>(best.pixel / p.sizes.width) : p.handle_points[2 * point + 1];
    p.distance[point] = p.active[point] ? best.distance : 0.0f;
  }
}

template <typename T, typename Launch>
void launch_point_tracking(const PointTrackingParams<T>& p, const Launch& launch) {
  const int64_t points = static_cast<int64_t>(p.sizes.batch) * p.points;
  launch(point_tracking_rows_kernel<T>, points * track_candidates(p.sizes, p.radius), kTrackThreads, p);
  launch(point_tracking_best_kernel<T>, ceil_div(points, kTrackReduceThreads / kLanes), kTrackReduceThreads, p);
}

}  // namespace cuda
}  // namespace draggan
