// Levels of vector instructions: one binary serves CPUs with and without AVX2 and AVX-512.
//
// Every kernel file (csrc/cpu/<op>_kernel.h) is compiled once for each level by each_level.h, inside the namespace of
// that level; select() picks the widest one that this CPU has.
#pragma once

#include <vector>

#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
#define DRAGGAN_X86_LEVELS 1
#else
#define DRAGGAN_X86_LEVELS 0
#endif

namespace draggan::cpu {

enum class Level : int { baseline = 0, avx2 = 1, avx512 = 2 };

const char* name_of(Level level);
std::vector<Level> supported_levels();  // of this build on this CPU, the widest last
Level current_level();                  // the widest, unless set_level chose another
void set_level(Level level);            // must be a supported one

// The variant of a function for the current level; on other machines than x86-64 there is only the baseline.
template <typename Function>
Function* select(Function* baseline, [[maybe_unused]] Function* avx2, [[maybe_unused]] Function* avx512) {
#if DRAGGAN_X86_LEVELS
  switch (current_level()) {
    case Level::avx512:
      return avx512;
    case Level::avx2:
      return avx2;
    case Level::baseline:
      break;
  }
#endif
  return baseline;
}

}  // namespace draggan::cpu

#if DRAGGAN_X86_LEVELS
#define DRAGGAN_SELECT(function)                                                               \
  ::draggan::cpu::select(&::draggan::cpu::baseline::function, &::draggan::cpu::avx2::function, \
                         &::draggan::cpu::avx512::function)
#else
#define DRAGGAN_SELECT(function) (&::draggan::cpu::baseline::function)
#endif
