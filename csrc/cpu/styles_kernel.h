// Products of matrices with one vector: a pass over the matrix, as fast as it comes from memory.
// Included by each_level.h once for each level; see there.

constexpr int kAtOnce = 4;  // rows, and sums that do not wait for each other

// out[row] = Σ matrix[row][k]·x[k]
static void matrix_times(const float* matrix, const float* x, int64_t rows, int64_t columns, float* out) {
  const int64_t whole = columns / kLanes * kLanes;
  for (int64_t row = 0; row < rows; row += kAtOnce) {
    const int here = static_cast<int>(rows - row < kAtOnce ? rows - row : kAtOnce);
    const float* from[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) from[i] = matrix + (row + (i < here ? i : 0)) * columns;
    Vec sums[kAtOnce] = {};
    for (int64_t k = 0; k < whole; k += kLanes) {
      const Vec factor = load(x + k);
      for (int i = 0; i < kAtOnce; ++i) sums[i] += load(from[i] + k) * factor;
    }
    for (int i = 0; i < here; ++i) {
      float total = 0;
      for (int lane = 0; lane < kLanes; ++lane) total += sums[i][lane];
      for (int64_t k = whole; k < columns; ++k) total += from[i][k] * x[k];
      out[row + i] = total;
    }
  }
}

// out[k] += Σ x[row]·matrix[row][k]
static void add_times_matrix(const float* matrix, const float* x, int64_t rows, int64_t columns, float* out) {
  const int64_t whole = columns / kLanes * kLanes;
  for (int64_t row = 0; row < rows; row += kAtOnce) {
    const int here = static_cast<int>(rows - row < kAtOnce ? rows - row : kAtOnce);
    const float* from[kAtOnce];
    float factor[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) {
      from[i] = matrix + (row + (i < here ? i : 0)) * columns;
      factor[i] = i < here ? x[row + i] : 0.0f;
    }
    for (int64_t k = 0; k < whole; k += kLanes) {
      Vec sum = load(out + k);
      for (int i = 0; i < kAtOnce; ++i) sum += factor[i] * load(from[i] + k);
      store(out + k, sum);
    }
    for (int64_t k = whole; k < columns; ++k) {
      for (int i = 0; i < here; ++i) out[k] += factor[i] * from[i][k];
    }
  }
}
