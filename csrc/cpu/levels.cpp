#include "levels.h"

#include <atomic>

namespace draggan::cpu {

namespace {

bool supported([[maybe_unused]] Level level) {
#if DRAGGAN_X86_LEVELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == Level::avx2) return avx2;
  if (level == Level::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return level == Level::baseline;
}

std::atomic<Level>& chosen() {
  static std::atomic<Level> level{supported_levels().back()};
  return level;
}

}  // namespace

const char* name_of(Level level) {
  switch (level) {
    case Level::avx512:
      return "avx512";
    case Level::avx2:
      return "avx2";
    case Level::baseline:
      break;
  }
  return "baseline";
}

std::vector<Level> supported_levels() {
  std::vector<Level> levels;
  for (const Level level : {Level::baseline, Level::avx2, Level::avx512}) {
    if (supported(level)) levels.push_back(level);
  }
  return levels;
}

Level current_level() { return chosen().load(std::memory_order_relaxed); }

void set_level(Level level) { chosen().store(level, std::memory_order_relaxed); }

}  // namespace draggan::cpu
