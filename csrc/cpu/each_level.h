// Compiles the file DRAGGAN_KERNEL once for each level of vector instructions. Deliberately without an include guard.
//
// subtle: what is defined here is compiled for instructions that the running CPU may lack. Everything in a kernel file
// is therefore static, and it includes nothing: a function shared with other files could be kept by the linker in its
// AVX-512 form for everybody. Functions of headers included before (bilinear.h) stay compiled for every CPU.

#define DRAGGAN_LANES 4
namespace draggan::cpu::baseline {
#include "cells.h"
#include DRAGGAN_KERNEL
}  // namespace draggan::cpu::baseline
#undef DRAGGAN_LANES

#if DRAGGAN_X86_LEVELS

#define DRAGGAN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DRAGGAN_BEGIN(features) \
  DRAGGAN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DRAGGAN_END _Pragma("clang attribute pop")
#else
#define DRAGGAN_BEGIN(features) _Pragma("GCC push_options") DRAGGAN_PRAGMA(GCC target(features))
#define DRAGGAN_END _Pragma("GCC pop_options")
#endif

#define DRAGGAN_LANES 8
DRAGGAN_BEGIN("avx2,fma")
namespace draggan::cpu::avx2 {
#include "cells.h"
#include DRAGGAN_KERNEL
}  // namespace draggan::cpu::avx2
DRAGGAN_END
#undef DRAGGAN_LANES

#define DRAGGAN_LANES 16
DRAGGAN_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace draggan::cpu::avx512 {
#include "cells.h"
#include DRAGGAN_KERNEL
}  // namespace draggan::cpu::avx512
DRAGGAN_END
#undef DRAGGAN_LANES

#undef DRAGGAN_BEGIN
#undef DRAGGAN_END
#undef DRAGGAN_PRAGMA
#endif

#undef DRAGGAN_KERNEL
