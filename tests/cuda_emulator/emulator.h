// Runs CUDA kernels on the CPU, one block after another, so that their numbers can be tested without a GPU.
//
// Included before a .cuh (g++ -include), it gives the CUDA keywords and built-ins that the kernels use a meaning in
// plain C++. A thread of a block is a fiber; it runs until it reaches a barrier or a warp collective, then the next
// one does. Threads and blocks take their turns in an order that the caller chooses: a kernel that lacks a barrier, or
// lets blocks depend on each other, gives different bits in different orders. A barrier that only some threads reach is
// reported. Not emulated: warps running in step, memory caches, timing, out-of-bounds checks (the tests poison around).
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // blocks run one after another, so one copy serves them all

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 * 1024;

enum class Order { kForward, kBackward, kShuffled };

struct Index {
  unsigned x;
};

struct Fiber {
  ucontext_t context;  // how it starts
  jmp_buf pause;       // where it goes on; unlike swapcontext, jumping makes no system calls
  bool started = false;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  enum { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone } state = kReady;
  int line = 0;          // of the barrier it waits at
  uint64_t offered = 0;  // to the other lanes of its warp, or to the block
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  jmp_buf scheduler;
  int current = 0;
  Index block_index{0}, block_size{0};
  void (*run)(const void*) = nullptr;
  const void* argument = nullptr;
};

inline Block block;  // the one that runs

inline void enter() {
  block.run(block.argument);
  block.fibers[block.current]->state = Fiber::kDone;
  _longjmp(block.scheduler, 1);
}

// Lets a fiber run until it waits or is done. Holds no variable that changes, as setjmp would not keep it.
__attribute__((noinline)) inline void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.pause, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

__attribute__((noinline)) inline void wait(decltype(Fiber::state) state, int line) {
  Fiber& fiber = *block.fibers[block.current];
  fiber.state = state;
  fiber.line = line;
  if (_setjmp(fiber.pause) == 0) _longjmp(block.scheduler, 1);
}

// Lets the threads [first, last) pass their barrier once all of them stand at it. True if they could.
inline bool release(int first, int last, decltype(Fiber::state) state) {
  for (int i = first; i < last; ++i) {
    if (block.fibers[i]->state != state) return false;
  }
  for (int i = first; i < last; ++i) {
    if (block.fibers[i]->line != block.fibers[first]->line) {
      throw std::runtime_error("threads wait at different barriers, in lines " + std::to_string(block.fibers[i]->line) +
                               " and " + std::to_string(block.fibers[first]->line));
    }
  }
  for (int i = first; i < last; ++i) block.fibers[i]->state = Fiber::kReady;
  return true;
}

inline std::vector<int> arranged(int64_t count, Order order, std::mt19937& random) {
  std::vector<int> turns(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) turns[i] = static_cast<int>(order == Order::kBackward ? count - 1 - i : i);
  if (order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
  return turns;
}

inline void run_block(Order order, std::mt19937& random) {
  const int threads = static_cast<int>(block.block_size.x);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    fiber.started = false;
    fiber.state = Fiber::kReady;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    int done = 0;
    for (const int i : arranged(threads, order, random)) {
      if (block.fibers[i]->state == Fiber::kReady) {
        block.current = i;
        resume(*block.fibers[i]);
      }
      done += block.fibers[i]->state == Fiber::kDone;
    }
    if (done == threads) return;
    bool released = false;
    for (int first = 0; first < threads; first += kWarp) {
      released |= release(first, std::min(first + kWarp, threads), Fiber::kAtWarpBarrier);
    }
    released |= release(0, threads, Fiber::kAtBlockBarrier);
    if (!released) throw std::runtime_error("only some threads of a warp or block have reached a barrier");
  }
}

template <typename Kernel, typename Params>
struct Call {
  Kernel kernel;
  const Params* params;
  static void run(const void* call) {
    const Call& self = *static_cast<const Call*>(call);
    self.kernel(*self.params);
  }
};

// Takes the place of <<<blocks, threads>>>; see common.cuh.
struct Launch {
  Order order;

  template <typename Kernel, typename Params>
  void operator()(Kernel kernel, int64_t blocks, int threads, const Params& params) const {
    const Call<Kernel, Params> call = {kernel, &params};
    std::mt19937 random(1);
    while (static_cast<int>(block.fibers.size()) < threads) block.fibers.push_back(std::make_unique<Fiber>());
    block.block_size = {static_cast<unsigned>(threads)};
    block.run = &Call<Kernel, Params>::run;
    block.argument = &call;
    for (const int index : arranged(blocks, order, random)) {
      block.block_index = {static_cast<unsigned>(index)};
      run_block(order, random);
    }
  }
};

inline int lane() { return block.current % kWarp; }

// Every lane offers a value; combine(offers of the 32 lanes) is what each gets.
template <typename T, typename Combine>
auto with_lanes(T value, int line, const Combine& combine) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane offers at most eight bytes");
  std::memcpy(&block.fibers[block.current]->offered, &value, sizeof(T));
  wait(Fiber::kAtWarpBarrier, line);
  T offers[kWarp];
  const int first = block.current / kWarp * kWarp;
  for (int i = 0; i < kWarp; ++i) std::memcpy(&offers[i], &block.fibers[first + i]->offered, sizeof(T));
  const auto result = combine(offers);
  wait(Fiber::kAtWarpBarrier, line);  // nobody offers anew before all have read
  return result;
}

inline unsigned ballot(bool predicate, int line) {
  return with_lanes(predicate, line, [](const bool* offers) {
    unsigned bits = 0;
    for (int i = 0; i < kWarp; ++i) bits |= static_cast<unsigned>(offers[i]) << i;
    return bits;
  });
}

inline int block_or(bool predicate, int line) {
  block.fibers[block.current]->offered = predicate;
  wait(Fiber::kAtBlockBarrier, line);
  int any = 0;
  for (unsigned i = 0; i < block.block_size.x; ++i) any |= block.fibers[i]->offered != 0;
  wait(Fiber::kAtBlockBarrier, line);
  return any;
}

template <typename T>
T shuffled(T value, int mask, int line) {
  return with_lanes(value, line, [&](const T* offers) { return offers[lane() ^ mask]; });
}

template <typename T>
T broadcast(T value, int from, int line) {
  return with_lanes(value, line, [&](const T* offers) { return offers[from]; });
}

inline Index thread_index() { return {static_cast<unsigned>(block.current)}; }

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block.block_index)
#define __syncthreads() ::emulator::wait(::emulator::Fiber::kAtBlockBarrier, __LINE__)
#define __syncwarp() ::emulator::wait(::emulator::Fiber::kAtWarpBarrier, __LINE__)
#define __syncthreads_or(predicate) ::emulator::block_or((predicate) != 0, __LINE__)
#define __ballot_sync(mask, predicate) ::emulator::ballot((predicate) != 0, __LINE__)
#define __any_sync(mask, predicate) (::emulator::ballot((predicate) != 0, __LINE__) != 0)
#define __shfl_sync(mask, value, from) ::emulator::broadcast((value), (from), __LINE__)
#define __shfl_xor_sync(mask, value, distance) ::emulator::shuffled((value), (distance), __LINE__)

inline void __threadfence() {}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address = before + value;
  return before;
}
