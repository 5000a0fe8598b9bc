// Products of small matrices with constant ones that were laid out for it. For kernel files; see each_level.h.
//
// The constant matrix [depth][n] lies in panels of kPanel columns: [panels][depth][kPanel], zeros beyond n. A panel
// stays in the first cache while all rows are multiplied with it. Every element is summed in the order of the depth,
// whatever rows are taken together: no result depends on how the rows are shared out.

constexpr int kPanelVectors = kPanel / kLanes;
constexpr int kRows = 12 / kPanelVectors;  // 12 sums: as many as 16 registers hold beside what is multiplied

// `rows` rows of one panel's product.
template <int rows>
DRAGGAN_INLINE void multiply_rows(const float* from, int64_t from_stride, const float* panel, int depth, float* to,
                                  int64_t to_stride) {
  Vec sums[rows][kPanelVectors] = {};
  for (int k = 0; k < depth; ++k, panel += kPanel) {
    Vec columns[kPanelVectors];
    for (int j = 0; j < kPanelVectors; ++j) columns[j] = load(panel + j * kLanes);
    for (int row = 0; row < rows; ++row) {
      const Vec factor = broadcast(from[row * from_stride + k]);
      for (int j = 0; j < kPanelVectors; ++j) sums[row][j] += factor * columns[j];
    }
  }
  for (int row = 0; row < rows; ++row) {
    for (int j = 0; j < kPanelVectors; ++j) store(to + row * to_stride + j * kLanes, sums[row][j]);
  }
}

// Fewer rows than kRows: at most `most`.
template <int most>
DRAGGAN_INLINE void multiply_rest(int rows, const float* from, int64_t from_stride, const float* panel, int depth,
                                  float* to, int64_t to_stride) {
  if constexpr (most > 0) {
    if (rows == most) return multiply_rows<most>(from, from_stride, panel, depth, to, to_stride);
    multiply_rest<most - 1>(rows, from, from_stride, panel, depth, to, to_stride);
  }
}

// from [rows][depth] × panels [first … last) -> their columns of to [rows][to_stride].
static void multiply_panels(const float* from, int64_t rows, int depth, const float* panels, int first, int last,
                            float* to, int64_t to_stride) {
  for (int panel = first; panel < last; ++panel) {
    const float* const columns = panels + static_cast<int64_t>(panel) * depth * kPanel;
    float* const out = to + panel * kPanel;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      multiply_rows<kRows>(from + row * depth, depth, columns, depth, out + row * to_stride, to_stride);
    multiply_rest<kRows - 1>(static_cast<int>(rows - row), from + row * depth, depth, columns, depth,
                             out + row * to_stride, to_stride);
  }
}
