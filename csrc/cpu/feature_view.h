// How the CPU kernels see a feature map: a pointer and strides, no torch type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../bilinear.h"
#include "levels.h"

#if DRAGGAN_X86_LEVELS
#include <immintrin.h>
#endif

namespace draggan::cpu {

enum class Element : int { float32, bfloat16, float16 };

// One feature map [C, h, w] of a batch; strides count elements.
struct FeatureView {
  void* data;
  Element element;
  int channels, height, width;
  int64_t stride_c, stride_y, stride_x;
};

// The channels a unit of work is about: [first, first + count), held in scratch rows of `padded` floats, a multiple of
// the vector length of every level; the floats beyond `count` are zero.
struct Channels {
  int first, count, padded;
};

constexpr int kMaxLanes = 16;

inline Channels channel_block(int block, int size, int channels) {
  const int first = block * size;
  const int count = channels - first < size ? channels - first : size;
  return {first, count, (count + kMaxLanes - 1) / kMaxLanes * kMaxLanes};
}

}  // namespace draggan::cpu
