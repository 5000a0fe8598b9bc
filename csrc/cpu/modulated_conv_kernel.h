// The epilogue of a layer and its transpose on the CPU, for a range of cells of one picture.
// Included by each_level.h once for each level; see there.

#include "channel_pairs.h"
#include "layer_cells.h"

template <bool whole, typename Type>
DRAGGAN_INLINE void activate_pair(const Layer& layer, int c, int count, float noise, const Type* y, Type* x,
                                  Type* x_styled) {
  const Pair value = activated(layer, c, load_pair<whole>(y + c, count), noise);
  store_pair<whole>(x + c, count, value);
  if (x_styled) store_pair<whole>(x_styled + c, count, styled(layer, c, value));
}

// The layer is copied: what a store to a map could change would be loaded anew after each.
template <typename Type>
static void activate_cells_as(const Layer layer, int begin, int end, const Type* y, Type* x, Type* x_styled) {
  const int channels = layer.channels;
  for (int cell = begin; cell < end; ++cell) {
    const int64_t at = (int64_t)cell * channels;
    const float noise = noise_at(layer, cell);
    Type* styled = x_styled ? x_styled + at : nullptr;
    int c = 0;
    for (; c + kPair <= channels; c += kPair) activate_pair<true>(layer, c, kPair, noise, y + at, x + at, styled);
    if (c < channels) activate_pair<false>(layer, c, channels - c, noise, y + at, x + at, styled);
  }
}

// Maps of one picture, [h·w][C]; x_styled is null where there is no next style.
static void activate_cells(Element element, const Layer& layer, int begin, int end, const void* y, void* x,
                           void* x_styled) {
  if (element == Element::bfloat16) {
    return activate_cells_as(layer, begin, end, (const BFloat16*)y, (BFloat16*)x, (BFloat16*)x_styled);
  }
  return activate_cells_as(layer, begin, end, (const Float32*)y, (Float32*)x, (Float32*)x_styled);
}

constexpr int kRunningCells = 16;

template <typename Type>
static void activate_transpose_cells_as(const Layer layer, int begin, int end, const Type* grad, const Type* x,
                                        Type* grad_y, const LayerSums total, const LayerSums running) {
  const int channels = layer.channels;
  clear(total, channels);
  clear(running, channels);
  for (int cell = begin; cell < end; ++cell) {
    const int64_t at = (int64_t)cell * channels;
    const float noise = noise_at(layer, cell);
    int c = 0;
    for (; c + kPair <= channels; c += kPair) {
      store_pair(grad_y + at + c, activated_transpose<true>(layer, c, kPair, grad + at, x + at, noise, running));
    }
    if (c < channels) {
      const int rest = channels - c;
      store_pair<false>(grad_y + at + c, rest,
                        activated_transpose<false>(layer, c, rest, grad + at, x + at, noise, running));
    }
    if ((cell - begin) % kRunningCells == kRunningCells - 1 || cell + 1 == end) add_and_clear(total, running, channels);
  }
}

// Writes the sums over these cells, arranged, to `total`; `running` is scratch.
static void activate_transpose_cells(Element element, const Layer& layer, int begin, int end, const void* grad,
                                     const void* x, void* grad_y, const LayerSums& total, const LayerSums& running) {
  if (element == Element::bfloat16) {
    return activate_transpose_cells_as(layer, begin, end, (const BFloat16*)grad, (const BFloat16*)x, (BFloat16*)grad_y,
                                       total, running);
  }
  return activate_transpose_cells_as(layer, begin, end, (const Float32*)grad, (const Float32*)x, (Float32*)grad_y,
                                     total, running);
}
