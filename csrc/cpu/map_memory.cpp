#include "map_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <list>
#include <mutex>

namespace draggan::cpu {

namespace {

constexpr size_t kLeastBytes = 16 << 10;  // smaller ones are the usual allocator's
constexpr size_t kMostHeld = 32 << 20;    // of what nobody uses; the rest goes back
constexpr size_t kAlignment = 4096;

class Memory {
 public:
  // Room for so many bytes: a held block that is hardly larger, or a new one.
  std::pair<void*, size_t> take(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = held_.begin(); block != held_.end(); ++block) {
        if (block->second < bytes || block->second > bytes + bytes / 8) continue;
        const auto found = *block;
        held_bytes_ -= found.second;
        held_.erase(block);
        return found;
      }
    }
    void* const data = std::aligned_alloc(kAlignment, bytes);
    TORCH_CHECK(data != nullptr, "can't allocate memory: ", bytes, " bytes for a map.");
    return {data, bytes};
  }

  void give_back(void* data, size_t bytes) {
    std::list<std::pair<void*, size_t>> surplus;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      held_.emplace_front(data, bytes);
      held_bytes_ += bytes;
      while (held_bytes_ > kMostHeld) {  // what has lain there longest
        held_bytes_ -= held_.back().second;
        surplus.splice(surplus.begin(), held_, std::prev(held_.end()));
      }
    }
    for (const auto& [unused, size] : surplus) std::free(unused);
  }

 private:
  std::mutex mutex_;
  std::list<std::pair<void*, size_t>> held_;  // those given back last first
  size_t held_bytes_ = 0;
};

Memory& memory() {
  static Memory* const instance = new Memory;  // never destroyed: tensors may live longer than static objects
  return *instance;
}

}  // namespace

at::Tensor map_from_memory(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  const auto [data, held] = memory().take(bytes);
  const size_t size = held;
  return at::from_blob(data, sizes, strides, [size](void* unused) { memory().give_back(unused, size); }, options);
}

bool worth_keeping(int64_t bytes) { return bytes >= static_cast<int64_t>(kLeastBytes); }

}  // namespace draggan::cpu
