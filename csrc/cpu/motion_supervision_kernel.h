// motion_supervision on the CPU: one handle's patch, a block of channels. Included by each_level.h once for each level.
//
// Bilinear upsampling is separable: every feature row that the patch needs is interpolated along x once and serves all
// the pixel rows it lies beside, forward (UpsampledRows) and backward (GradientRows). Scratch is a few rows, whatever
// the radius.

constexpr int kNoRow = -1000;  // no pixel row that a patch reads: those start at -1

// Columns of the patch's window: pixel begin + k lies between cells here[k] and right[k] of a scratch row.
struct Columns {
  int begin, count;           // pixels
  int first_cell, cells;      // cells of a scratch row
  const PatchColumn* column;  // [count]
};

// U in the columns, along pixel rows: zeros outside the image. Four rows are kept, which is what a patch row needs.
struct UpsampledRows {
  const MotionSupervision& p;
  Channels channels;
  Columns columns;
  float *cells, *interpolated[2], *upsampled[4];
  int interpolated_row[2] = {-1, -1}, upsampled_row[4] = {kNoRow, kNoRow, kNoRow, kNoRow};

  // Feature row j, interpolated along x.
  const float* feature_row(int j) {
    const int slot = j & 1, padded = channels.padded;
    float* row = interpolated[slot];
    if (interpolated_row[slot] == j) return row;
    interpolated_row[slot] = j;
    load_cells(p.feature, channels, j, columns.first_cell, columns.cells, cells);
    for (int k = 0; k < columns.count; ++k) {
      const PatchColumn& column = columns.column[k];
      const float *a = cells + column.here * padded, *b = cells + column.right * padded;
      const Vec fx = broadcast(column.fraction);
      for (int c = 0; c < padded; c += kLanes) {
        store(row + k * padded + c, column.inside ? lerp(load(a + c), load(b + c), fx) : Vec{});
      }
    }
    return row;
  }

  // Pixel row y: [count][padded].
  const float* pixel_row(int y) {
    const int slot = y & 3, size = columns.count * channels.padded;
    float* row = upsampled[slot];
    if (upsampled_row[slot] == y) return row;
    upsampled_row[slot] = y;
    if (y < 0 || y >= p.image_height) {
      for (int k = 0; k < size; ++k) row[k] = 0;
      return row;
    }
    const Source source = source_of(y, p.feature.height, p.image_height);
    const float *a = feature_row(source.cell), *b = feature_row(source.next);
    const Vec fy = broadcast(source.fraction);
    for (int k = 0; k < size; k += kLanes) store(row + k, lerp(load(a + k), load(b + k), fy));
    return row;
  }
};

// The transpose: gradients of pixel rows, given in ascending order, become gradients of cells, added to the map.
struct GradientRows {
  const MotionSupervision& p;
  Channels channels;
  Columns columns;
  float *cells, *interpolated[2];
  int interpolated_row[2] = {-1, -1};

  void finish(int slot) {
    const int j = interpolated_row[slot], padded = channels.padded;
    if (j < 0) return;
    interpolated_row[slot] = -1;
    for (int k = 0; k < columns.cells * padded; ++k) cells[k] = 0;
    for (int k = 0; k < columns.count; ++k) {
      const PatchColumn& column = columns.column[k];
      if (!column.inside) continue;
      const float* grad = interpolated[slot] + k * padded;
      float *a = cells + column.here * padded, *b = cells + column.right * padded;
      const Vec fx = broadcast(column.fraction);
      for (int c = 0; c < padded; c += kLanes) {
        const Vec right = fx * load(grad + c);
        store(a + c, load(a + c) + (load(grad + c) - right));
        store(b + c, load(b + c) + right);
      }
    }
    add_cells(p.grad, channels, j, columns.first_cell, columns.cells, cells);
  }

  float* feature_row(int j) {
    const int slot = j & 1;
    if (interpolated_row[slot] != j) {
      finish(slot);
      interpolated_row[slot] = j;
      for (int k = 0; k < columns.count * channels.padded; ++k) interpolated[slot][k] = 0;
    }
    return interpolated[slot];
  }

  void add_pixel_row(int y, const float* grad) {
    if (y < 0 || y >= p.image_height) return;
    const int size = columns.count * channels.padded;
    const Source source = source_of(y, p.feature.height, p.image_height);
    float *a = feature_row(source.cell), *b = feature_row(source.next);
    const Vec fy = broadcast(source.fraction);
    for (int k = 0; k < size; k += kLanes) {
      const Vec lower = fy * load(grad + k);
      store(a + k, load(a + k) + (load(grad + k) - lower));
      store(b + k, load(b + k) + lower);
    }
  }

  void finish_all() {
    const int upper = interpolated_row[0] < interpolated_row[1] ? 0 : 1;
    finish(upper);
    finish(1 - upper);
  }
};

// Σ |U(p + d) − U(p)|·weight over the patch and a block of channels; its gradient is added to p.grad.
// scratch: (kScratchRows·patch.columns + 2·patch.cells)·padded floats.
static double patch_loss(const MotionSupervision& p, const Patch& patch, Channels channels, float* scratch) {
  const int padded = channels.padded, size = patch.columns * padded;
  const Columns columns = {patch.x_begin, patch.columns, patch.first_cell, patch.cells, patch.column};
  UpsampledRows rows = {p, channels, columns, scratch, {}, {}};
  scratch += patch.cells * padded;
  GradientRows gradients = {p, channels, columns, scratch, {}};
  scratch += patch.cells * padded;
  const auto take = [&] { return scratch += size, scratch - size; };
  for (float*& row : rows.interpolated) row = take();
  for (float*& row : rows.upsampled) row = take();
  for (float*& row : gradients.interpolated) row = take();
  float *grad_upper = take(), *grad_lower = take();  // gradients of the pixel rows above and below p + d
  for (int k = 0; k < size; ++k) grad_upper[k] = 0;

  const Shift& shift = patch.shift;
  const Vec fx = broadcast(shift.fx), fy = broadcast(shift.fy), weight = broadcast(patch.weight);
  double loss = 0;
  for (int y = patch.y_begin; y < patch.y_end; ++y) {
    const int moved = y + shift.whole_y;
    for (int k = 0; k < size; ++k) grad_lower[k] = 0;
    const float *fixed = nullptr, *upper = nullptr, *lower = nullptr;
    for (int row = moved < y ? moved : y; row <= (moved + 1 > y ? moved + 1 : y);
         ++row) {  // ascending: rows are reused
      const float* values = rows.pixel_row(row);
      if (row == y) fixed = values;
      if (row == moved) upper = values;
      if (row == moved + 1) lower = values;
    }
    const PatchSpan span = patch.span[y - patch.y_begin];
    Vec sum{};
    for (int x = span.begin; x < span.end; ++x) {
      const int here = (x - columns.begin) * padded, left = here + shift.whole_x * padded, right = left + padded;
      for (int c = 0; c < padded; c += kLanes) {
        const Vec above = lerp(load(upper + left + c), load(upper + right + c), fx);
        const Vec below = lerp(load(lower + left + c), load(lower + right + c), fx);
        const Vec difference = lerp(above, below, fy) - load(fixed + here + c);
        sum += absolute(difference);
        const Vec sign = signed_weight(difference, weight);
        const Vec sign_below = fy * sign, sign_above = sign - sign_below;
        store(grad_upper + left + c, load(grad_upper + left + c) + (sign_above - fx * sign_above));
        store(grad_upper + right + c, load(grad_upper + right + c) + fx * sign_above);
        store(grad_lower + left + c, load(grad_lower + left + c) + (sign_below - fx * sign_below));
        store(grad_lower + right + c, load(grad_lower + right + c) + fx * sign_below);
      }
    }
    loss += sum_of(sum);
    gradients.add_pixel_row(moved, grad_upper);
    float* swapped = grad_upper;
    grad_upper = grad_lower, grad_lower = swapped;
  }
  gradients.add_pixel_row(patch.y_end + shift.whole_y, grad_upper);
  gradients.finish_all();
  return loss * patch.weight;
}

// Writes a box of float32 [rows][cells][padded] into the gradient, from row y and column x on.
static void store_box(const FeatureView& grad, Channels channels, const float* box, int y, int rows, int x, int cells) {
  for (int j = 0; j < rows; ++j) {
    store_cells(grad, channels, y + j, x, cells, box + (int64_t)j * cells * channels.padded);
  }
}
