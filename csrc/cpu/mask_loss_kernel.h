// mask_loss on the CPU: the loss and the gradient of one unit, a block of channels in a band of cell rows.
// Included by each_level.h once for each level; see there.
//
// A cell (j, i) is the square between four neighbouring features; it owns the image pixels whose source cell is (j, i).
// Inside it the change u = U − U0 is bilinear. Where its four corners share a sign, |u| is bilinear as well, and the
// cell needs only the mask-weighted sums of the four corner weights (CellWeights). Where they do not, its pixels are
// walked: along a pixel row u is a + fx·(b − a), and loss and gradient follow from Σ s and Σ s·fx, s = sign(u)·fixed.
// The channels of a cell that must be walked are packed first: in the embedded model's drags they are three in ten, but
// hardly any sixteen neighbours are without one.

struct Corners {
  Vec c00, c10, c01, c11;  // left and right of the upper row, left and right of the lower row
};

// Loss and gradient of the corners, from the pixels themselves.
DRAGGAN_INLINE void walk_cell(const MaskLoss& p, const Corners& d, int j, int i, const float* fixed, Corners& grad,
                              Vec& loss) {
  const int y_begin = p.first_y[j], y_end = p.first_y[j + 1], x_begin = p.first_x[i], x_end = p.first_x[i + 1];
  for (int y = y_begin; y < y_end; ++y) {
    const Vec fy = broadcast(p.fraction_y[y]);
    const Vec a = lerp(d.c00, d.c01, fy);
    const Vec slope = lerp(d.c10, d.c11, fy) - a;
    const float* weight = fixed + (int64_t)(y - y_begin) * p.image_width;
    Vec sum{}, sum_fx{};
    for (int x = x_begin; x < x_end; ++x) {
      const Vec fx = broadcast(p.fraction_x[x]);
      const Vec s = signed_weight(a + fx * slope, broadcast(weight[x]));
      sum += s;
      sum_fx += fx * s;
    }
    loss += a * sum + slope * sum_fx;  // Σ s·u = Σ |u|·fixed
    const Vec left = sum - sum_fx;
    grad.c00 += left - fy * left;
    grad.c01 += fy * left;
    grad.c10 += sum_fx - fy * sum_fx;
    grad.c11 += fy * sum_fx;
  }
}

// Differences F − F0 of cell row j: [width][padded].
static void load_difference(const MaskLoss& p, Channels channels, int j, float* out, float* scratch) {
  load_cells(p.feature, channels, j, 0, p.feature.width, out);
  load_cells(p.feature0, channels, j, 0, p.feature.width, scratch);
  const int n = p.feature.width * channels.padded;
  for (int k = 0; k < n; ++k) out[k] -= scratch[k];
}

DRAGGAN_INLINE Corners corners_at(const float* upper, const float* lower, int left, int right) {
  return {load(upper + left), load(upper + right), load(lower + left), load(lower + right)};
}

// subtle: one corner after the other, because in the last column left and right are the same cell.
DRAGGAN_INLINE void add_corners(float* upper, float* lower, int left, int right, const Corners& grad) {
  store(upper + left, load(upper + left) + grad.c00);
  store(upper + right, load(upper + right) + grad.c10);
  store(lower + left, load(lower + left) + grad.c01);
  store(lower + right, load(lower + right) + grad.c11);
}

// The channels in which the corners share a sign, or are all zero. Where only some are zero it is for the pixels to
// tell: sign(0) = 0.
DRAGGAN_INLINE Bits shares_sign(const Corners& d) {
  const Bits positive = (d.c00 > 0.0f) & (d.c10 > 0.0f) & (d.c01 > 0.0f) & (d.c11 > 0.0f);
  const Bits negative = (d.c00 < 0.0f) & (d.c10 < 0.0f) & (d.c01 < 0.0f) & (d.c11 < 0.0f);
  const Bits zero = (d.c00 == 0.0f) & (d.c10 == 0.0f) & (d.c01 == 0.0f) & (d.c11 == 0.0f);
  return positive | negative | zero;
}

// One row of cells: its loss; its gradient is added to upper (feature row j) and lower (feature row j + 1, or j at the
// last), both [width][padded].
static double cell_row(const MaskLoss& p, Channels channels, int j, const float* d_upper, const float* d_lower,
                       const float* fixed, float* upper, float* lower) {
  const int width = p.feature.width, padded = channels.padded;
  float packed[4][kMaskBlock + kMaxLanes];  // the corners of the channels to walk, then their gradients
  uint32_t to_walk[kMaskBlock / kLanes];
  Vec loss{};
  for (int i = 0; i < width; ++i) {
    const CellWeights& w = p.weights[(int64_t)j * width + i];
    if (w.w00 == 0 && w.w10 == 0 && w.w01 == 0 && w.w11 == 0) continue;  // no fixed pixel
    const int here = i * padded, right = (i + 1 < width ? i + 1 : i) * padded;
    int count = 0;
    for (int c = 0; c < padded; c += kLanes) {
      const Corners d = corners_at(d_upper, d_lower, here + c, right + c);
      Bits linear = shares_sign(d);
      uint32_t walk = kAllLanes & ~lanes_of(linear);
      if (kPackingIsSlow && 4 * __builtin_popcount(walk) >= 3 * kLanes) linear = Bits{}, walk = kAllLanes;
      const auto weighted = [&](Vec corner, float weight) {
        return (Vec)((Bits)signed_weight(corner, broadcast(weight)) & linear);
      };
      const Corners grad = {weighted(d.c00, w.w00), weighted(d.c10, w.w10), weighted(d.c01, w.w01),
                            weighted(d.c11, w.w11)};
      loss += grad.c00 * d.c00 + grad.c10 * d.c10 + grad.c01 * d.c01 + grad.c11 * d.c11;
      add_corners(upper, lower, here + c, right + c, grad);
      to_walk[c / kLanes] = walk;
      if (walk == 0) continue;
      store_packed(packed[0] + count, d.c00, walk);
      store_packed(packed[1] + count, d.c10, walk);
      store_packed(packed[2] + count, d.c01, walk);
      store_packed(packed[3] + count, d.c11, walk);
      count += __builtin_popcount(walk);
    }
    if (count == 0) continue;
    for (float* corner : packed) store(corner + count, Vec{});  // zeros contribute nothing
    for (int k = 0; k < count; k += kLanes) {
      const Corners d = {load(packed[0] + k), load(packed[1] + k), load(packed[2] + k), load(packed[3] + k)};
      Corners grad{};
      walk_cell(p, d, j, i, fixed, grad, loss);
      store(packed[0] + k, grad.c00), store(packed[1] + k, grad.c10);
      store(packed[2] + k, grad.c01), store(packed[3] + k, grad.c11);
    }
    for (int c = 0, k = 0; c < padded; c += kLanes) {
      const uint32_t walk = to_walk[c / kLanes];
      if (walk == 0) continue;
      const Corners grad = {load_packed(packed[0] + k, walk), load_packed(packed[1] + k, walk),
                            load_packed(packed[2] + k, walk), load_packed(packed[3] + k, walk)};
      add_corners(upper, lower, here + c, right + c, grad);
      k += __builtin_popcount(walk);
    }
  }
  return sum_of(loss);
}

// The sums of one row of cells, from the mask; sums is scratch for 2·image_width floats.
static void mask_weights(const MaskLoss& p, int j, float* sums, CellWeights* weights) {
  float *sum = sums, *sum_fy = sums + p.image_width;
  for (int x = 0; x < 2 * p.image_width; ++x) sums[x] = 0;
  for (int y = p.first_y[j]; y < p.first_y[j + 1]; ++y) {
    const float fy = p.fraction_y[y];
    const float* movable = p.movable + y * p.movable_stride_y;
    for (int x = 0; x < p.image_width; ++x) {
      const float fixed = 1.0f - movable[x];
      sum[x] += fixed;
      sum_fy[x] += fy * fixed;
    }
  }
  for (int i = 0; i < p.feature.width; ++i) {
    CellWeights w{};
    for (int x = p.first_x[i]; x < p.first_x[i + 1]; ++x) {
      const float fx = p.fraction_x[x];
      w.w00 += (1.0f - fx) * (sum[x] - sum_fy[x]);
      w.w10 += fx * (sum[x] - sum_fy[x]);
      w.w01 += (1.0f - fx) * sum_fy[x];
      w.w11 += fx * sum_fy[x];
    }
    weights[i] = w;
  }
}

// The loss of a block of channels in the cell rows [first, last), not yet divided by the number of terms, and the
// gradient of those feature rows. A feature row also belongs to the cells above it, so a band starts one cell row early
// and keeps of that only the gradient of its own first row: every element is written once, by one thread.
static double mask_loss_band(const MaskLoss& p, Channels channels, int first, int last, float* scratch) {
  const int width = p.feature.width, height = p.feature.height, row = width * channels.padded;
  float *d_upper = scratch, *d_lower = d_upper + row, *upper = d_lower + row, *lower = upper + row;
  float *spare = lower + row, *fixed = spare + row;
  for (int k = 0; k < row; ++k) upper[k] = 0;
  double loss = 0;
  int loaded = -1;  // the cell row whose difference d_upper holds
  for (int j = first > 0 ? first - 1 : 0; j < last; ++j) {
    for (int k = 0; k < row; ++k) lower[k] = 0;
    if (p.row_is_used[j]) {
      const int next = j + 1 < height ? j + 1 : j;
      if (loaded != j) load_difference(p, channels, j, d_upper, spare);
      load_difference(p, channels, next, d_lower, spare);
      for (int y = p.first_y[j], k = 0; y < p.first_y[j + 1]; ++y, k += p.image_width) {
        for (int x = 0; x < p.image_width; ++x) fixed[k + x] = 1.0f - p.movable[y * p.movable_stride_y + x];
      }
      const double of_row = cell_row(p, channels, j, d_upper, d_lower, fixed, upper, lower);
      if (j >= first) loss += of_row;
      float* swapped = d_upper;
      d_upper = d_lower, d_lower = swapped, loaded = next;
    }
    if (j >= first) {
      for (int k = 0; k < row; ++k) upper[k] *= p.scale;
      store_cells(p.grad, channels, j, 0, width, upper);
    }
    float* swapped = upper;
    upper = lower, lower = swapped;
  }
  return loss;
}
