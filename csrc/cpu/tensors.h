// From tensors to what the kernels see. Only for csrc/cpu/<op>.cpp.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <memory>
#include <vector>

#include "feature_view.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace draggan::cpu {

inline Element element_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16:
      return Element::bfloat16;
    case at::kHalf:
      return Element::float16;
    default:
      return Element::float32;  // checks.h lets nothing else pass
  }
}

inline FeatureView view_of(const at::Tensor& map, int64_t batch) {
  char* data = static_cast<char*>(map.data_ptr()) + batch * map.stride(0) * map.element_size();
  return {data,
          element_of(map),
          static_cast<int>(map.size(1)),
          static_cast<int>(map.size(2)),
          static_cast<int>(map.size(3)),
          map.stride(1),
          map.stride(2),
          map.stride(3)};
}

// An uninitialised gradient map: dense, in the feature's layout. Where its memory is fresh from the system, a page of 4
// KiB is faulted in and cleared at a time, which takes longer than all the rest (16 MiB: 4.4 ms here, 0.7 in huge
// pages).
inline at::Tensor empty_gradient(const at::Tensor& feature) {
  at::Tensor grad = at::empty_like(feature);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(grad.data_ptr()), end = begin + grad.nbytes();
  const uintptr_t first = (begin + huge - 1) & ~(huge - 1), last = end & ~(huge - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
#endif
  return grad;
}

inline int blocks_of(int channels, int size) { return (channels + size - 1) / size; }

// Small arrays are read through a contiguous copy in the dtype the kernels want (the same tensor if it is one already).
inline at::Tensor as_floats(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

}  // namespace draggan::cpu
