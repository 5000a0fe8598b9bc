// Vectors of which only the first `count` lanes belong to a map. For kernel files; see each_level.h.

// kWhole: all of them do.
template <bool kWhole>
DRAGGAN_INLINE Vec load_lanes(const float* from, int count) {
  if constexpr (kWhole) return load(from);
  Vec value{};
  for (int lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
}

template <bool kWhole>
DRAGGAN_INLINE void store_lanes(float* to, int count, Vec value) {
  if constexpr (kWhole) return store(to, value);
  for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
}
