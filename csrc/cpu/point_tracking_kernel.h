// point_tracking on the CPU: the search of one handle. Included by each_level.h once for each level; see there.
//
// Inside a cell, U − r is a + fx·dx + fy·dy + fx·fy·dxy for every channel, so that its squared length is a polynomial
// in fx and fy: ten inner products over the channels serve all pixels of the cell, 64 of them at 1024² with 128²
// features. subtle: they are summed in double, because near the nearest pixel the polynomial's terms nearly cancel; and
// a is exact where the differences are zero, so that pixels where U is constant tie exactly.

typedef double Wide __attribute__((vector_size(4 * DRAGGAN_LANES)));
constexpr int kWide = DRAGGAN_LANES / 2;

DRAGGAN_INLINE Wide load_wide(const float* from) {
  typedef float Narrow __attribute__((vector_size(2 * DRAGGAN_LANES)));
  Narrow value;
  __builtin_memcpy(&value, from, sizeof(value));
  return __builtin_convertvector(value, Wide);
}

DRAGGAN_INLINE double sum_of_wide(Wide value) {
  double total = 0;
  for (int lane = 0; lane < kWide; ++lane) total += value[lane];
  return total;
}

// The inner products of a, dx, dy and dxy with each other, summed over the channels.
struct Gram {
  double aa, a_x, a_y, a_xy, xx, xy, x_xy, yy, y_xy, xy_xy;
};

static Gram gram_of(const float* c00, const float* c10, const float* c01, const float* c11, const float* reference,
                    int padded) {
  Wide aa{}, a_x{}, a_y{}, a_xy{}, xx{}, xy{}, x_xy{}, yy{}, y_xy{}, xy_xy{};
  for (int c = 0; c < padded; c += kWide) {
    const Wide corner = load_wide(c00 + c), right = load_wide(c10 + c);
    const Wide a = corner - load_wide(reference + c);
    const Wide dx = right - corner, dy = load_wide(c01 + c) - corner, dxy = load_wide(c11 + c) - right - dy;
    aa += a * a, a_x += a * dx, a_y += a * dy, a_xy += a * dxy;
    xx += dx * dx, xy += dx * dy, x_xy += dx * dxy;
    yy += dy * dy, y_xy += dy * dxy, xy_xy += dxy * dxy;
  }
  return {sum_of_wide(aa), sum_of_wide(a_x),  sum_of_wide(a_y), sum_of_wide(a_xy), sum_of_wide(xx),
          sum_of_wide(xy), sum_of_wide(x_xy), sum_of_wide(yy),  sum_of_wide(y_xy), sum_of_wide(xy_xy)};
}

// Whether pixel (x, y) at this distance beats the nearest so far: the first minimum in row-major order wins, and NaN
// counts as the least of all, as in torch.argmin.
DRAGGAN_INLINE bool is_nearer(float distance, int x, int y, const Nearest& than) {
  const bool nan = distance != distance, than_nan = than.distance != than.distance;
  if (nan != than_nan) return nan;
  if (!nan && distance != than.distance) return distance < than.distance;
  return y < than.y || (y == than.y && x < than.x);
}

// The nearest pixel in [x_begin, x_end) × [y_begin, y_end), which lies in the image and is not empty.
// reference: [padded]; scratch: two rows of the window's cells, [cells][padded] each.
static Nearest nearest_in_window(const PointTracking& p, Channels channels, const float* reference, int x_begin,
                                 int x_end, int y_begin, int y_end, float* scratch) {
  const FeatureView& map = p.feature;
  const int padded = channels.padded;
  const int first_cell = source_of(x_begin, map.width, p.image_width).cell;
  const int last_cell = source_of(x_end - 1, map.width, p.image_width).cell;
  const int cells = (last_cell + 1 < map.width ? last_cell + 1 : last_cell) - first_cell + 1;
  float *upper = scratch, *lower = scratch + (int64_t)cells * padded;
  int loaded = -1;  // the feature row in `upper`
  Nearest best = {__builtin_inff(), kMaxAxis + 1, kMaxAxis + 1};
  for (int y = y_begin; y < y_end;) {
    const Source row = source_of(y, map.height, p.image_height);
    const int row_end = first_pixel(row.cell + 1, map.height, p.image_height);
    const int band_end = row_end < y_end ? row_end : y_end;  // pixel rows [y, band_end) share their cells
    if (loaded != row.cell) load_cells(map, channels, row.cell, first_cell, cells, upper);
    load_cells(map, channels, row.next, first_cell, cells, lower);
    for (int x = x_begin; x < x_end;) {
      const Source column = source_of(x, map.width, p.image_width);
      const int column_end = first_pixel(column.cell + 1, map.width, p.image_width);
      const int cell_end = column_end < x_end ? column_end : x_end;
      const int here = (column.cell - first_cell) * padded, right = (column.next - first_cell) * padded;
      const Gram g = gram_of(upper + here, upper + right, lower + here, lower + right, reference, padded);
      for (int v = y; v < band_end; ++v) {
        const double fy = source_of(v, map.height, p.image_height).fraction;
        const double constant = g.aa + fy * (2 * g.a_y + fy * g.yy);
        const double linear = 2 * (g.a_x + fy * (g.a_xy + g.xy + fy * g.y_xy));
        const double square = g.xx + fy * (2 * g.x_xy + fy * g.xy_xy);
        for (int u = x; u < cell_end; ++u) {
          const double fx = source_of(u, map.width, p.image_width).fraction;
          const double squared = constant + fx * (linear + fx * square);
          const float distance = (float)__builtin_sqrt(squared < 0 ? 0 : squared);  // below zero: rounding
          if (is_nearer(distance, u, v, best)) best = {distance, u, v};
        }
      }
      x = cell_end;
    }
    float* swapped = upper;
    upper = lower, lower = swapped, loaded = row.next;
    y = band_end;
  }
  return best;
}
