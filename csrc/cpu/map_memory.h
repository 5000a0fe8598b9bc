// Memory of the maps that a step makes and lets go, kept for the next step's.
//
// glibc's allocator neither reuses an aligned block for the next one of its size (until 2.38: it wants the alignment
// beside it) nor holds on to much at its end: with small things that stay in between, the states of a drag, a process
// grew from step to step, or had its pages cleared anew at every step.
#pragma once

#include <ATen/core/Tensor.h>

namespace draggan::cpu {

// An uninitialised tensor of these sizes and strides (dense), like at::empty_strided.
bool worth_keeping(int64_t bytes);
at::Tensor map_from_memory(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options);

}  // namespace draggan::cpu
