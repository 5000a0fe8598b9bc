// Vectors of floats, and the way between a feature map of any dtype and strides and rows of float32 scratch.
// Included by each_level.h once for each level; see there. A scratch row is [cells][padded channels].

typedef float Vec __attribute__((vector_size(4 * DRAGGAN_LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * DRAGGAN_LANES)));
constexpr int kLanes = DRAGGAN_LANES;

#define DRAGGAN_INLINE static inline __attribute__((always_inline))

DRAGGAN_INLINE Vec load(const float* from) {
  Vec value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

DRAGGAN_INLINE void store(float* to, Vec value) { __builtin_memcpy(to, &value, sizeof(value)); }

DRAGGAN_INLINE Vec broadcast(float value) { return value - Vec{}; }

DRAGGAN_INLINE Vec lerp(Vec a, Vec b, Vec fraction) { return a + fraction * (b - a); }

DRAGGAN_INLINE Vec absolute(Vec value) { return (Vec)((Bits)value & 0x7fffffff); }

// weight with the sign of value, 0 where value is 0: sign(value)·weight.
DRAGGAN_INLINE Vec signed_weight(Vec value, Vec weight) {
  const Bits flipped = (Bits)weight ^ ((Bits)value & (int32_t)0x80000000);
  return (Vec)(value != 0.0f ? flipped : Bits{});
}

// One bit for each lane of a comparison's result.
DRAGGAN_INLINE uint32_t lanes_of(Bits condition) {
#if DRAGGAN_LANES == 16
  return _mm512_movepi32_mask((__m512i)condition);
#elif DRAGGAN_LANES == 8
  return (uint32_t)_mm256_movemask_ps((__m256)condition);
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (uint32_t)(condition[lane] & 1) << lane;
  return bits;
#endif
}

constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

// Without AVX-512 lanes are packed one by one, unless it is all of them.
constexpr bool kPackingIsSlow = DRAGGAN_LANES != 16;

// The lanes of value that are set in `lanes`, side by side from `to` on. Up to kLanes floats are written.
[[maybe_unused]] DRAGGAN_INLINE void store_packed(float* to, Vec value, uint32_t lanes) {
#if DRAGGAN_LANES == 16
  store(to, (Vec)_mm512_maskz_compress_ps((__mmask16)lanes, (__m512)value));
#else
  if (lanes == kAllLanes) return store(to, value);
  for (; lanes != 0; lanes &= lanes - 1) *to++ = value[__builtin_ctz(lanes)];
#endif
}

// The way back: floats side by side, spread over the lanes of `lanes`; the others are zero. kLanes floats are read.
[[maybe_unused]] DRAGGAN_INLINE Vec load_packed(const float* from, uint32_t lanes) {
#if DRAGGAN_LANES == 16
  return (Vec)_mm512_maskz_expand_ps((__mmask16)lanes, (__m512)load(from));
#else
  if (lanes == kAllLanes) return load(from);
  Vec value{};
  for (; lanes != 0; lanes &= lanes - 1) value[__builtin_ctz(lanes)] = *from++;
  return value;
#endif
}

[[maybe_unused]] static double sum_of(Vec value) {
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

DRAGGAN_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

DRAGGAN_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Float32 {
  float value;
  DRAGGAN_INLINE float to_float(Float32 from) { return from.value; }
  DRAGGAN_INLINE Float32 from_float(float from) { return {from}; }
};

struct BFloat16 {
  uint16_t bits;
  DRAGGAN_INLINE float to_float(BFloat16 from) { return float_of((uint32_t)from.bits << 16); }
  DRAGGAN_INLINE BFloat16 from_float(float from) {
    const uint32_t bits = bits_of(from);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // halves to even
    return {(uint16_t)(from == from ? rounded : 0x7fc0)};
  }
};

struct Float16 {
  uint16_t bits;
  DRAGGAN_INLINE float to_float(Float16 from) {
    // A half's exponent and mantissa, moved to a float's place, are its value times 2^-112, subnormals included.
    const uint32_t magnitude = (uint32_t)(from.bits & 0x7fff) << 13;
    const uint32_t special = (from.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;  // infinity, NaN
    const uint32_t scaled = bits_of(float_of(magnitude) * 0x1p112f) | special;
    return float_of(scaled | (uint32_t)(from.bits & 0x8000) << 16);
  }
  DRAGGAN_INLINE Float16 from_float(float from) {
    const uint32_t sign = bits_of(from) >> 16 & 0x8000;
    const uint32_t magnitude = bits_of(from) & 0x7fffffff;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;  // halves to even
    // Below 2^-14: adding 0.5 leaves the subnormal half, rounded, in the last bits.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const uint32_t large = magnitude > 0x7f800000 ? 0x7e00u : 0x7c00u;       // NaN, infinity
    return {(uint16_t)(sign | (magnitude >= 0x477ff000 ? large : finite))};  // from 65520 on: infinity
  }
};

constexpr int kTransposed = 16;  // cells of a row that are moved together where channels are not the innermost axis

template <typename Type>
static void load_cells_as(const FeatureView& map, Channels channels, int y, int x, int cells, float* out) {
  const Type* row = (const Type*)map.data + channels.first * map.stride_c + y * map.stride_y + x * map.stride_x;
  const int padded = channels.padded, count = channels.count;
  if (map.stride_c == 1) {
    for (int i = 0; i < cells; ++i) {
      const Type* cell = row + i * map.stride_x;
      for (int c = 0; c < count; ++c) out[i * padded + c] = Type::to_float(cell[c]);
      for (int c = count; c < padded; ++c) out[i * padded + c] = 0;
    }
    return;
  }
  for (int start = 0; start < cells; start += kTransposed) {
    const int end = start + kTransposed < cells ? start + kTransposed : cells;
    for (int c = 0; c < count; ++c) {
      const Type* plane = row + c * map.stride_c;
      for (int i = start; i < end; ++i) out[i * padded + c] = Type::to_float(plane[i * map.stride_x]);
    }
    for (int i = start; i < end; ++i) {
      for (int c = count; c < padded; ++c) out[i * padded + c] = 0;
    }
  }
}

// Row y of a feature map, cells [x, x + cells), as float32 [cells][padded].
[[maybe_unused]] static void load_cells(const FeatureView& map, Channels channels, int y, int x, int cells,
                                        float* out) {
  switch (map.element) {
    case Element::float32:
      return load_cells_as<Float32>(map, channels, y, x, cells, out);
    case Element::bfloat16:
      return load_cells_as<BFloat16>(map, channels, y, x, cells, out);
    case Element::float16:
      return load_cells_as<Float16>(map, channels, y, x, cells, out);
  }
}

template <typename Type, bool add>
static void store_cells_as(const FeatureView& map, Channels channels, int y, int x, int cells, const float* in) {
  Type* row = (Type*)map.data + channels.first * map.stride_c + y * map.stride_y + x * map.stride_x;
  const int padded = channels.padded, count = channels.count;
  const bool channels_last = map.stride_c == 1;
  const int step = channels_last ? 1 : kTransposed;
  for (int start = 0; start < cells; start += step) {
    const int end = start + step < cells ? start + step : cells;
    if (channels_last) {
      Type* cell = row + start * map.stride_x;
      for (int c = 0; c < count; ++c) {
        cell[c] = Type::from_float(in[start * padded + c] + (add ? Type::to_float(cell[c]) : 0.0f));
      }
      continue;
    }
    for (int c = 0; c < count; ++c) {
      Type* plane = row + c * map.stride_c;
      for (int i = start; i < end; ++i) {
        Type& cell = plane[i * map.stride_x];
        cell = Type::from_float(in[i * padded + c] + (add ? Type::to_float(cell) : 0.0f));
      }
    }
  }
}

// The way back: writes float32 [cells][padded] to row y, cells [x, x + cells), rounded to the map's dtype.
[[maybe_unused]] static void store_cells(const FeatureView& map, Channels channels, int y, int x, int cells,
                                         const float* in) {
  switch (map.element) {
    case Element::float32:
      return store_cells_as<Float32, false>(map, channels, y, x, cells, in);
    case Element::bfloat16:
      return store_cells_as<BFloat16, false>(map, channels, y, x, cells, in);
    case Element::float16:
      return store_cells_as<Float16, false>(map, channels, y, x, cells, in);
  }
}

// Adds float32 [cells][padded] to row y of a float32 map. (Sums in a narrower dtype would round at every addition.)
[[maybe_unused]] static void add_cells(const FeatureView& map, Channels channels, int y, int x, int cells,
                                       const float* in) {
  store_cells_as<Float32, true>(map, channels, y, x, cells, in);
}
