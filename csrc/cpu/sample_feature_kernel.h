// sample_feature on the CPU: U at the pixel nearest to a point. Included by each_level.h once for each level; see
// there.

// Writes [channels.count] values; scratch holds 4·padded floats.
static void sample_pixel(const SampleFeature& p, Channels channels, float point_x, float point_y, float* scratch,
                         float* out) {
  const bool finite = is_finite(point_x) && is_finite(point_y);
  const int x = finite ? nearest_pixel(point_x) : -1, y = finite ? nearest_pixel(point_y) : -1;
  if (x < 0 || x >= p.image_width || y < 0 || y >= p.image_height) {
    for (int c = 0; c < channels.count; ++c) out[c] = 0;
    return;
  }
  const Source sx = source_of(x, p.feature.width, p.image_width);
  const Source sy = source_of(y, p.feature.height, p.image_height);
  float *c00 = scratch, *c10 = c00 + channels.padded, *c01 = c10 + channels.padded, *c11 = c01 + channels.padded;
  load_cells(p.feature, channels, sy.cell, sx.cell, 1, c00);
  load_cells(p.feature, channels, sy.cell, sx.next, 1, c10);
  load_cells(p.feature, channels, sy.next, sx.cell, 1, c01);
  load_cells(p.feature, channels, sy.next, sx.next, 1, c11);
  for (int c = 0; c < channels.count; ++c) {
    const float upper = c00[c] + sx.fraction * (c10[c] - c00[c]);
    const float lower = c01[c] + sx.fraction * (c11[c] - c01[c]);
    out[c] = upper + sy.fraction * (lower - upper);
  }
}
