// A ToRGB layer: a few weighted sums over the channels of each cell.
// Included by each_level.h once for each level; see there.

constexpr int kMostSums = 4;  // output channels that are summed in one pass over a cell

// Cells begin … end of x [cells][channels] -> out [colours][cells], onto what is there.
template <int colours>
static void add_colours(const float* x, int64_t begin, int64_t end, int64_t cells, int channels, const float* weight,
                        const float* bias, float clamp, float* out) {
  const int whole = channels / kLanes * kLanes;
  for (int64_t cell = begin; cell < end; ++cell) {
    const float* const from = x + cell * channels;
    Vec sums[colours] = {};
    for (int c = 0; c < whole; c += kLanes) {
      const Vec values = load(from + c);
      for (int colour = 0; colour < colours; ++colour) sums[colour] += values * load(weight + colour * channels + c);
    }
    for (int colour = 0; colour < colours; ++colour) {
      float total = bias[colour];
      for (int lane = 0; lane < kLanes; ++lane) total += sums[colour][lane];
      for (int c = whole; c < channels; ++c) total += from[c] * weight[colour * channels + c];
      if (total > clamp) total = clamp;  // never with a clamp that is no number
      if (total < -clamp) total = -clamp;
      out[colour * cells + cell] += total;
    }
  }
}

static void to_rgb_cells(const float* x, int64_t begin, int64_t end, int64_t cells, int channels, int colours,
                         const float* weight, const float* bias, float clamp, float* out) {
  for (; colours >= kMostSums; colours -= kMostSums) {
    add_colours<kMostSums>(x, begin, end, cells, channels, weight, bias, clamp, out);
    weight += kMostSums * channels, bias += kMostSums, out += kMostSums * cells;
  }
  if (colours == 3) add_colours<3>(x, begin, end, cells, channels, weight, bias, clamp, out);
  if (colours == 2) add_colours<2>(x, begin, end, cells, channels, weight, bias, clamp, out);
  if (colours == 1) add_colours<1>(x, begin, end, cells, channels, weight, bias, clamp, out);
}
