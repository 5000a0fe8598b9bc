// What the passes around a layer's convolution share. The arithmetic is specified in kernels/modulated_conv.py.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <limits>
#include <new>
#include <optional>
#include <tuple>

#include "../bilinear.h"
#include "map_memory.h"
#include "tensors.h"

namespace draggan::cpu {

using at::Tensor;

constexpr float kSlope = 0.2f;  // of the leaky ReLU
constexpr int kMaxChannels = 1 << 16;

// A layer's epilogue for one picture of the batch. The factors are "arranged" (channel_pairs.h) and padded.
struct Layer {
  const float *demodulation, *bias;  // gain included: gain > 0 commutes with the leaky ReLU
  const float* style;                // of the next layer, or ones
  const float* noise;                // [h, w] as given, or null
  int channels;
  float gain;
  float clamp;  // a NaN if there is none: every comparison with it is false
};

// What style and demodulation multiply in the backward pass, summed over cells: arranged and padded.
struct LayerSums {
  float *style, *demodulation;
};

// Kernels of the level in use that bring per-channel values into a map's lane order, and sums back; see
// channel_pairs.h.
struct Arrangement {
  void (*arrange)(Element, const float* from, int channels, float factor, float* to);
  void (*total)(Element, const float* partial, int parts, int row, int channels, float* to);
};

// Floats for vectors of any level: none of theirs straddles two cache lines.
struct FreeFloats {
  void operator()(float* floats) const { ::operator delete[](floats, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;
inline Floats uninitialised_floats(int64_t count) { return Floats(new (std::align_val_t(64)) float[count]); }

inline int64_t padded(int64_t channels) { return (channels + 2 * kMaxLanes - 1) / (2 * kMaxLanes) * (2 * kMaxLanes); }

inline void check_map(const char* name, const Tensor& map) {
  TORCH_CHECK(map.dim() == 4 && map.numel() > 0, name, " must have the shape [B, C, h, w], none of them 0, not ",
              map.sizes(), ".");
  TORCH_CHECK(map.scalar_type() == at::kFloat || map.scalar_type() == at::kBFloat16, name,
              " must be float32 or bfloat16, not ", map.scalar_type(), ".");
  TORCH_CHECK(map.size(1) <= kMaxChannels && map.size(2) <= kMaxAxis && map.size(3) <= kMaxAxis, name,
              " may have at most ", kMaxChannels, " channels and be at most ", kMaxAxis,
              " cells high and wide, but its shape is ", map.sizes(), ".");
  TORCH_CHECK(map.is_contiguous(at::MemoryFormat::ChannelsLast), name,
              " must be contiguous in the channels-last memory format, but its strides are ", map.strides(), ".");
}

inline void check_map(const char* name, const Tensor& map, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK(map.sizes() == shape && map.scalar_type() == dtype, name, " must be ", dtype, " of the shape ", shape,
              ", not ", map.scalar_type(), " ", map.sizes(), ".");
  check_map(name, map);
}

inline Tensor empty_map(at::IntArrayRef shape, const Tensor& like) {
  const int64_t channels = shape[1], row = shape[3] * channels, picture = shape[2] * row;
  if (!worth_keeping(shape[0] * picture * like.element_size()))
    return at::empty(shape, like.options(), at::MemoryFormat::ChannelsLast);
  return map_from_memory(shape, {picture, 1, row, channels}, like.options());
}

inline const char* bytes_of(const Tensor& map) { return static_cast<const char*>(map.const_data_ptr()); }
inline char* writable_bytes_of(const Tensor& map) {
  return map.defined() ? static_cast<char*>(map.mutable_data_ptr()) : nullptr;
}

// The clamp as a clamped x of that dtype shows it.
inline std::optional<double> as_stored(std::optional<double> clamp, at::ScalarType dtype) {
  if (!clamp || dtype != at::kBFloat16) return clamp;
  return static_cast<float>(c10::BFloat16(static_cast<float>(*clamp)));
}

// The small arguments of a layer's epilogue, checked and arranged, for all pictures of a batch.
class Layers {
 public:
  // shape [B, C, h, w] and element: of the map that the epilogue makes, or made.
  Layers(at::IntArrayRef shape, Element element, const Arrangement& arrangement, const Tensor& demodulation,
         const std::optional<Tensor>& noise, const Tensor& bias, const std::optional<Tensor>& style, double gain,
         std::optional<double> clamp)
      : channels_(shape[1]), padded_(padded(channels_)), gain_(static_cast<float>(gain)) {
    const int64_t batch = shape[0];
    TORCH_CHECK(gain > 0 && gain <= std::numeric_limits<float>::max(), "gain must be positive and finite, not ", gain,
                ".");
    TORCH_CHECK(!clamp || *clamp > 0, "clamp must be positive or None, not ", clamp.value_or(0), ".");
    if (clamp) clamp_ = static_cast<float>(*clamp);
    const Tensor d = checked("demodulation", demodulation, {batch, channels_});
    const Tensor b = checked("bias", bias, {channels_});
    if (noise && noise->dim() == 3) {
      noise_ = checked("noise", *noise, {batch, shape[2], shape[3]});
      noise_stride_ = shape[2] * shape[3];
    } else if (noise) {
      noise_ = checked("noise", *noise, {shape[2], shape[3]});
    }
    const Tensor s = style ? checked("style", *style, {batch, channels_}) : Tensor();
    factors_ = uninitialised_floats((2 * batch + 1) * padded_);
    const auto arrange = [&](const Tensor& from, int64_t row, float factor, int64_t at) {
      arrangement.arrange(element, from.const_data_ptr<float>() + row * channels_, static_cast<int>(channels_), factor,
                          factors_.get() + at * padded_);
    };
    arrange(b, 0, gain_, 0);
    for (int64_t row = 0; row < batch; ++row) {
      arrange(d, row, gain_, 1 + 2 * row);
      if (style)
        arrange(s, row, 1.0f, 2 + 2 * row);
      else
        std::fill_n(factors_.get() + (2 + 2 * row) * padded_, padded_, 1.0f);
    }
  }

  Layer of(int64_t b) const {
    const float* own = factors_.get() + (1 + 2 * b) * padded_;
    const float* noise = noise_.defined() ? noise_.const_data_ptr<float>() + b * noise_stride_ : nullptr;
    return {own, factors_.get(), own + padded_, noise, static_cast<int>(channels_), gain_, clamp_};
  }

 private:
  static Tensor checked(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK(tensor.device().is_cpu() && tensor.is_floating_point() && tensor.sizes() == shape, name,
                " must be a float tensor on the CPU of the shape ", shape, ", not ", tensor.scalar_type(), " ",
                tensor.sizes(), " on ", tensor.device(), ".");
    return as_floats(tensor);
  }

  int64_t channels_, padded_;
  float gain_, clamp_ = std::numeric_limits<float>::quiet_NaN();
  Tensor noise_;
  int64_t noise_stride_ = 0;  // between the pictures of a batch; 0 if they share it
  Floats factors_;            // bias, then demodulation and style of each picture
};

// LayerSums for each part of each picture. The parts do not depend on the thread count, and are added in their order.
class PartialSums {
 public:
  PartialSums(int64_t batch, int64_t parts, int64_t channels)
      : batch_(batch),
        parts_(parts),
        channels_(channels),
        padded_(padded(channels)),
        sums_(uninitialised_floats(2 * batch * parts * padded_)) {}

  LayerSums of(int64_t b, int64_t part) const {
    float* style = sums_.get() + (b * parts_ + part) * padded_;
    return {style, style + batch_ * parts_ * padded_};
  }

  // grad_style [B, C], grad_demodulation [B, C].
  std::tuple<Tensor, Tensor> totals(Element element, const Arrangement& arrangement, const Tensor& demodulation) const {
    const auto options = demodulation.options().dtype(at::kFloat);
    const Tensor of_style = at::empty({batch_, channels_}, options), of_demodulation = at::empty_like(of_style);
    for (int64_t b = 0; b < batch_; ++b) {
      const int parts = static_cast<int>(parts_), channels = static_cast<int>(channels_);
      const int row = static_cast<int>(padded_);
      const LayerSums first = of(b, 0);
      arrangement.total(element, first.style, parts, row, channels, of_style.mutable_data_ptr<float>() + b * channels_);
      arrangement.total(element, first.demodulation, parts, row, channels,
                        of_demodulation.mutable_data_ptr<float>() + b * channels_);
    }
    const Tensor factor = as_floats(demodulation);  // what was summed holds demodulation·y
    const float* divisor = factor.const_data_ptr<float>();
    float* values = of_demodulation.mutable_data_ptr<float>();
    for (int64_t i = 0; i < batch_ * channels_; ++i) values[i] /= divisor[i];
    return {of_style, of_demodulation};
  }

 private:
  int64_t batch_, parts_, channels_, padded_;
  Floats sums_;
};

// Threads are worth waking for this many elements each; small maps stay on the thread that asks.
constexpr int64_t kElementsPerThread = 1 << 15;

inline int64_t grain_of(int64_t units, int64_t elements) {
  return std::max<int64_t>(1, units * kElementsPerThread / elements);
}

}  // namespace draggan::cpu
