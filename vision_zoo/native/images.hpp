// Depthwise convolutions and pools of many images, one vector of channels of one image at a time.
#pragma once

#include <ATen/Parallel.h>

#include <cassert>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "window.hpp"

template <int K, typename Body>
void with_stride(int64_t stride, Body body) {
  if (stride == 1)
    body(std::integral_constant<int, K>(), std::integral_constant<int, 1>());
  else
    body(std::integral_constant<int, K>(), std::integral_constant<int, 2>());
}

template <typename Body>
void with_window(const Shape& s, Body body) {
  assert(s.stride == 1 || s.stride == 2);
  switch (s.kernel) {
    case 3: with_stride<3>(s.stride, body); break;
    case 5: with_stride<5>(s.stride, body); break;
    case 7: with_stride<7>(s.stride, body); break;
    default: assert(false && "the caller checks for 3, 5 and 7");
  }
}

struct Rectified {
  template <typename V>
  V operator()(V v, int64_t, int64_t) const {
    const V zero = {};
    return v > zero ? v : zero;
  }
};

struct Unchanged {
  template <typename V>
  V operator()(V v, int64_t, int64_t) const {
    return v;
  }
};

// (C, K, K) -> for each vector of channels (K, K, lanes); the one that starts at channel c starts at c * K * K.
std::vector<float> pack_taps(const float* weight, int64_t channels, int64_t area) {
  std::vector<float> taps(channels * area);
  for_vectors(channels, [&](auto lanes, int64_t c) {
    for (int64_t k = 0; k < area; k++)
      for (int n = 0; n < lanes; n++) taps[c * area + k * lanes + n] = weight[(c + n) * area + k];
  });
  return taps;
}

// body(n, lanes, channel, scratch) for every image and vector of channels, those of one image after the other: they
// share cache lines. scratch: a Scratch<lanes> of each thread.
template <template <int> class Scratch, typename Body>
void for_images(int64_t images, const Shape& s, Body body) {
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    std::tuple<std::optional<Scratch<16>>, std::optional<Scratch<8>>, std::optional<Scratch<4>>,
               std::optional<Scratch<2>>, std::optional<Scratch<1>>>
        scratches;
    for (int64_t n = begin; n < end; n++)
      for_vectors(s.channels, [&](auto lanes, int64_t c) {
        auto& scratch = std::get<std::optional<Scratch<lanes>>>(scratches);
        if (!scratch) scratch.emplace(s);
        body(n, lanes, c, *scratch);
      });
  });
}

template <int N>
struct Forward {
  Block padded, sums;
  explicit Forward(const Shape& s)
      : padded(s.padded_height(), s.padded_width(), N), sums(s.out_height, s.out_width, N) {}
};

template <int N>
struct Backward {
  Block padded, spread, sums;
  explicit Backward(const Shape& s)
      : padded(s.padded_height(), s.padded_width(), N), spread(s.spread_height(), s.spread_width(), N),
        sums(s.height, s.width, N) {}
};

// y (N, H', W', C) of x (N, H, W, C): one output pixel = finish(sum over the window of change(x) * tap, h, w).
template <typename T, typename Change, typename Finish>
void windows_forward(const T* x, const std::vector<float>& taps, T* y, int64_t images, const Shape& s, Change change,
                     Finish finish) {
  const int64_t area = s.kernel * s.kernel;
  for_images<Forward>(images, s, [&](int64_t n, auto lanes, int64_t c, auto& scratch) {
    constexpr int N = lanes;
    fill<N>(scratch.padded, x + n * s.size() + c, s.height, s.width, s.channels, s.top, s.left, change);
    with_window(s, [&](auto k, auto stride) {
      sum_windows<N, k, k, stride>(scratch.padded.at(0, 0), scratch.padded.row(), taps.data() + c * area, s.out_height,
                                   s.out_width, {scratch.sums.at(0, 0), scratch.sums.row(), N});
    });
    drain<N>(scratch.sums, y + n * s.out_size() + c, s.out_height, s.out_width, s.channels, finish);
  });
}

// The gradients of a depthwise convolution of relu(x).
class DepthwiseGradient {
 public:
  DepthwiseGradient(const float* weight, const Shape& shape)
      : shape_(shape), area_(shape.kernel * shape.kernel), flipped_(shape.channels * area_),
        sums_(at::get_num_threads(), std::vector<float>(flipped_.size(), 0.f)) {
    const std::vector<float> taps = pack_taps(weight, shape.channels, area_);
    for_vectors(shape.channels, [&](auto lanes, int64_t c) {
      with_window(shape, [&](auto k, auto stride) { flip<lanes, k, stride>(&taps[c * area_], &flipped_[c * area_]); });
    });
  }

  // grad (N, H', W', C), x (N, H, W, C) -> grad_x, through the ReLU.
  template <typename T>
  void add(const T* grad, const T* x, T* grad_x, int64_t images) {
    const Shape& s = shape_;
    for_images<Backward>(images, s, [&](int64_t n, auto lanes, int64_t c, auto& scratch) {
      constexpr int N = lanes;
      fill<N>(scratch.padded, x + n * s.size() + c, s.height, s.width, s.channels, s.top, s.left, Rectified());
      fill<N>(scratch.spread, grad + n * s.out_size() + c, s.out_height, s.out_width, s.channels, s.border(),
              s.border(), Unchanged());
      with_window(s, [&](auto k, auto stride) {
        add_tap_gradients<N, k, stride>(scratch.padded, scratch.spread, &sums_[at::get_thread_num()][c * area_], s);
        sum_back<N, k, stride>(scratch.spread, &flipped_[c * area_], s, scratch.sums);
      });
      drain<N>(scratch.sums, grad_x + n * s.size() + c, s.height, s.width, s.channels,
               [&](Floats<N> sum, int64_t h, int64_t w) {
                 const Floats<N> zero = {};
                 return load<N>(scratch.padded.at(s.top + h, s.left + w)) > zero ? sum : zero;
               });
    });
  }

  // The weight's gradient (C, K, K).
  void finish(float* grad_weight) const {
    for_vectors(shape_.channels, [&](auto lanes, int64_t c) {
      for (int64_t k = 0; k < area_; k++)
        for (int n = 0; n < lanes; n++) {
          float& sum = grad_weight[(c + n) * area_ + k] = 0;
          for (const std::vector<float>& each : sums_) sum += each[c * area_ + k * lanes + n];
        }
    });
  }

 private:
  Shape shape_;
  int64_t area_;
  std::vector<float> flipped_;
  std::vector<std::vector<float>> sums_;  // of each thread
};
