// The epilogue of a layer, and its transpose, for 2·kLanes channels of one cell. For kernel files; see each_level.h.

// Gain included, as in the layer's other factors.
DRAGGAN_INLINE float noise_at(const Layer& layer, int64_t cell) {
  return layer.noise ? tame(layer.noise[cell]) * layer.gain : 0.0f;
}

DRAGGAN_INLINE Vec activated(Vec y, Vec demodulation, Vec offset, Vec clamp) {
  const Vec z = y * demodulation + offset, leaked = z * kSlope;
  Vec x = z > leaked ? z : leaked;
  x = x > clamp ? clamp : x;
  return x < -clamp ? -clamp : x;
}

// x of the channels from c on, from y and the noise of the cell.
DRAGGAN_INLINE Pair activated(const Layer& layer, int c, Pair y, float noise) {
  const Pair demodulation = load_pair(layer.demodulation + c), bias = load_pair(layer.bias + c);
  const Vec clamp = broadcast(layer.clamp);
  return {activated(y.first, demodulation.first, bias.first + noise, clamp),
          activated(y.second, demodulation.second, bias.second + noise, clamp)};
}

DRAGGAN_INLINE Pair styled(const Layer& layer, int c, Pair x) {
  const Pair style = load_pair(layer.style + c);
  return {x.first * style.first, x.second * style.second};
}

// The sums over cells that the gradients of style and demodulation need: of grad·x and of grad_z·(z − noise − bias).
// Few cells are added up at a time (`running`), then those sums: long chains of additions would lose digits.
struct Sums {
  Pair style, demodulation;
};

DRAGGAN_INLINE void add_and_clear(float* total, float* running, int channels) {
  for (int c = 0; c < channels; c += kPair) {
    const Pair sum = load_pair(total + c), more = load_pair(running + c);
    store_pair(total + c, {sum.first + more.first, sum.second + more.second});
    store_pair(running + c, Pair{});
  }
}

DRAGGAN_INLINE void add_and_clear(const LayerSums& total, const LayerSums& running, int channels) {
  add_and_clear(total.style, running.style, channels);
  add_and_clear(total.demodulation, running.demodulation, channels);
}

DRAGGAN_INLINE void clear(const LayerSums& sums, int channels) {
  for (int c = 0; c < channels; c += kPair) {
    store_pair(sums.style + c, Pair{});
    store_pair(sums.demodulation + c, Pair{});
  }
}

DRAGGAN_INLINE Vec activated_transpose(Vec grad, Vec x, Vec style, Vec demodulation, Vec offset, Vec clamp,
                                       Vec& style_sum, Vec& demodulation_sum) {
  const Bits positive = x > 0.0f;
  const Vec z = positive ? x : x * (1.0f / kSlope);
  const Vec through = grad * style;
  const Vec sloped = positive ? through : through * kSlope;
  const Vec grad_z = absolute(x) >= clamp ? Vec{} : sloped;
  style_sum += grad * x;
  demodulation_sum += grad_z * (z - offset);
  return grad_z * demodulation;
}

// The gradient of y from that of x·style; adds the cell's terms to the sums.
DRAGGAN_INLINE Pair activated_transpose(const Layer& layer, int c, Pair grad, Pair x, float noise, Sums& sums) {
  const Pair demodulation = load_pair(layer.demodulation + c), bias = load_pair(layer.bias + c);
  const Pair style = load_pair(layer.style + c);
  const Vec clamp = broadcast(layer.clamp);
  return {activated_transpose(grad.first, x.first, style.first, demodulation.first, bias.first + noise, clamp,
                              sums.style.first, sums.demodulation.first),
          activated_transpose(grad.second, x.second, style.second, demodulation.second, bias.second + noise, clamp,
                              sums.style.second, sums.demodulation.second)};
}

// The same from and into memory.
template <bool whole, typename Type>
DRAGGAN_INLINE Pair activated_transpose(const Layer& layer, int c, int count, const Type* grad, const Type* x,
                                        float noise, const LayerSums& running) {
  Sums sums = {load_pair(running.style + c), load_pair(running.demodulation + c)};
  const Pair grad_y =
      activated_transpose(layer, c, load_pair<whole>(grad + c, count), load_pair<whole>(x + c, count), noise, sums);
  store_pair(running.style + c, sums.style);
  store_pair(running.demodulation + c, sums.demodulation);
  return grad_y;
}
