// Maps of channels-last memory as pairs of vectors: 2·kLanes channels of one cell. For kernel files; see each_level.h.
//
// A pair of bfloat16 is loaded as 32-bit words: the first vector gets their low halves (even channels), the second the
// high ones (odd channels). Either becomes a float by one shift or one mask, and no element ever changes its lane,
// which is what makes the usual widening and narrowing slow. Per-channel factors and sums are "arranged" in the same
// order.

struct Pair {
  Vec first, second;
};

constexpr int kPair = 2 * kLanes;

DRAGGAN_INLINE Pair load_pair(const float* from) { return {load(from), load(from + kLanes)}; }

DRAGGAN_INLINE void store_pair(float* to, Pair values) {
  store(to, values.first);
  store(to + kLanes, values.second);
}

DRAGGAN_INLINE Pair load_pair(const Float32* from) { return {load(&from->value), load(&from[kLanes].value)}; }

DRAGGAN_INLINE void store_pair(Float32* to, Pair values) {
  store(&to->value, values.first);
  store(&to[kLanes].value, values.second);
}

DRAGGAN_INLINE Pair load_pair(const BFloat16* from) {
  Bits words;
  __builtin_memcpy(&words, from, sizeof(words));
  return {(Vec)(words << 16), (Vec)(words & (int32_t)0xffff0000)};
}

// The bits of the nearest bfloat16, halves to even, in the upper half; the lower half is left as it falls.
// subtle: a NaN must come in with a lower half of zeros, or its bits could overflow into those of a number. Those of
// bfloat16 maps and those that arithmetic makes have it; `tame` sees to the rest.
DRAGGAN_INLINE Bits rounded(Vec value) {
  const Bits bits = (Bits)value;
  return bits + ((bits >> 16) & 1) + 0x7fff;
}

DRAGGAN_INLINE float tame(float value) { return value == value ? value : float_of(0x7fc00000); }

typedef uint32_t Words __attribute__((vector_size(4 * DRAGGAN_LANES)));

DRAGGAN_INLINE Words words_of(Pair values) {
  return (Words)rounded(values.first) >> 16 | ((Words)rounded(values.second) & 0xffff0000u);
}

DRAGGAN_INLINE void store_pair(BFloat16* to, Pair values) {
  const Words words = words_of(values);
  __builtin_memcpy(to, &words, sizeof(words));
}

// The first `count` channels of a pair, fewer than all; loads fill it up with zeros.
#if DRAGGAN_LANES == 16
DRAGGAN_INLINE Pair load_part(const BFloat16* from, int count) {
  const Bits words = (Bits)_mm512_maskz_loadu_epi16((1u << count) - 1, from);
  return {(Vec)(words << 16), (Vec)(words & (int32_t)0xffff0000)};
}

DRAGGAN_INLINE void store_part(BFloat16* to, int count, Pair values) {
  _mm512_mask_storeu_epi16(to, (1u << count) - 1, (__m512i)words_of(values));
}

DRAGGAN_INLINE Pair load_part(const Float32* from, int count) {
  const uint32_t mask = (1u << count) - 1;
  return {(Vec)_mm512_maskz_loadu_ps(mask & 0xffff, from), (Vec)_mm512_maskz_loadu_ps(mask >> 16, from + kLanes)};
}

DRAGGAN_INLINE void store_part(Float32* to, int count, Pair values) {
  const uint32_t mask = (1u << count) - 1;
  _mm512_mask_storeu_ps(to, mask & 0xffff, (__m512)values.first);
  _mm512_mask_storeu_ps(to + kLanes, mask >> 16, (__m512)values.second);
}
#else
template <typename Type>
DRAGGAN_INLINE Pair load_part(const Type* from, int count) {
  Type padded[kPair] = {};
  for (int c = 0; c < count; ++c) padded[c] = from[c];
  return load_pair(padded);
}

template <typename Type>
DRAGGAN_INLINE void store_part(Type* to, int count, Pair values) {
  Type padded[kPair];
  store_pair(padded, values);
  for (int c = 0; c < count; ++c) to[c] = padded[c];
}
#endif

// `whole` says at compile time that the pair is a whole one.
template <bool whole, typename Type>
DRAGGAN_INLINE Pair load_pair(const Type* from, int count) {
  if constexpr (whole)
    return load_pair(from);
  else
    return load_part(from, count);
}

template <bool whole, typename Type>
DRAGGAN_INLINE void store_pair(Type* to, int count, Pair values) {
  if constexpr (whole)
    store_pair(to, values);
  else
    store_part(to, count, values);
}

// Where channel c of a pair lies among its 2·kLanes floats.
DRAGGAN_INLINE int place_of(Element element, int c) {
  return element == Element::bfloat16 ? (c & 1) * kLanes + (c >> 1) : c;
}

// factor·from [channels], "arranged": each pair in the lane order of such a map, zeros up to the next whole pair.
[[maybe_unused]] static void arrange(Element element, const float* from, int channels, float factor, float* to) {
  for (int c = 0; c < channels; c += kPair) {
    for (int i = 0; i < kPair; ++i) to[c + place_of(element, i)] = c + i < channels ? tame(from[c + i]) * factor : 0.0f;
  }
}

// The sums of arranged rows [parts][row]: to [channels], as given.
[[maybe_unused]] static void total(Element element, const float* partial, int parts, int row, int channels, float* to) {
  for (int c = 0; c < channels; c += kPair) {
    double totals[kPair] = {};
    for (int part = 0; part < parts; ++part) {
      const float* from = partial + (int64_t)part * row + c;
      for (int i = 0; i < kPair; ++i) totals[i] += from[i];
    }
    for (int i = 0; i < kPair && c + i < channels; ++i) to[c + i] = (float)totals[place_of(element, i)];
  }
}
