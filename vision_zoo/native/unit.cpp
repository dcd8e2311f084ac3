// What a NASNet's training spends its time in on a CPU, beside the products: depthwise convolutions with the ReLU before
// them, average pools, and batch norms; forward and backward. The general kernels are slow at depthwise gradients and
// pass over memory often; here a vector of channels of one image at a time stays in the cache.
//
// Layout: channels last, so x is (N, H, W, C) and y (N, H', W', C); float or bfloat16 (`half`), C % 8 == 0. Weights,
// statistics, sums and what registers hold are float.
//
// Plain C functions over raw pointers, called through ctypes: no binding library, and it compiles in seconds.
// Threads are torch's own (at::parallel_for), so that its setting of their number holds here too.

#include <ATen/Parallel.h>

#include <cassert>
#include <cmath>
#include <mutex>

#include "window.hpp"

namespace {

// body(T*) with the type that the tensors have.
template <typename Body>
void with_type(int64_t half, Body body) {
  if (half)
    body(static_cast<bfloat16*>(nullptr));
  else
    body(static_cast<float*>(nullptr));
}

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

// 1 / number of pixels that the window at each output position finds inside the image; (H', W').
std::vector<float> shares(const Shape& s) {
  auto inside = [&](int64_t at, int64_t before, int64_t size) {
    const int64_t first = at * s.stride - before;
    return std::min(first + s.kernel, size) - std::max<int64_t>(first, 0);
  };
  std::vector<float> result;
  for (int64_t h = 0; h < s.out_height; h++)
    for (int64_t w = 0; w < s.out_width; w++)
      result.push_back(1.f / (inside(h, s.top, s.height) * inside(w, s.left, s.width)));
  return result;
}

// Taps of the channels from c on: (C, K, K) -> (K, K, N); of 1 without weights.
template <int N>
std::vector<float> taps_of(const float* weight, int64_t c, int64_t area) {
  std::vector<float> taps(area * N, 1.f);
  if (weight)
    for (int64_t k = 0; k < area; k++)
      for (int n = 0; n < N; n++) taps[k * N + n] = weight[(c + n) * area + k];
  return taps;
}

// One output pixel = finish(sum over the window of change(x) * weight, h, w).
template <typename T, typename Change, typename Finish>
void windows_forward(const T* x, const float* weight, T* y, int64_t images, const Shape& s, Change change,
                     Finish finish) {
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for_vectors(s.channels, [&](auto lanes, int64_t c) {
      constexpr int N = decltype(lanes)::value;
      Block padded(s.padded_height(), s.padded_width(), N);
      const std::vector<float> taps = taps_of<N>(weight, c, s.kernel * s.kernel);
      for (int64_t n = begin; n < end; n++) {
        fill<N>(padded, x + n * s.size() + c, s.height, s.width, s.channels, s.top, s.left, change);
        T* to = y + n * s.out_size() + c;
        with_window(s, [&](auto k, auto stride) {
          constexpr int K = decltype(k)::value, STRIDE = decltype(stride)::value;
          sum_windows<N, K, K, STRIDE>(padded.at(0, 0), padded.row(), taps.data(), s.out_height, s.out_width,
                                       [&](int64_t h, int64_t w, Floats<N> sum) {
                                         store<N>(to + (h * s.out_width + w) * s.channels, finish(sum, h, w));
                                       });
        });
      }
    });
  });
}

// Sums of a and of a * b over each channel's rows, in double; a, b (P, C). first, second (C).
template <typename T>
void channel_sums(const T* a, const T* b, int64_t rows, int64_t channels, double* first, double* second) {
  std::fill_n(first, channels, 0.);
  std::fill_n(second, channels, 0.);
  std::mutex adding;
  at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(2 * channels, 0.);
    for (int64_t r = begin; r < end; r += 64) {  // short float sums, over rows that stay in the cache
      const int64_t last = std::min(end, r + 64);
      for_vectors(channels, [&](auto lanes, int64_t c) {
        constexpr int N = decltype(lanes)::value;
        Floats<N> total[2] = {}, products[2] = {};  // two of each hide the latency of the addition
        auto add = [&](int64_t q, int which) {
          const Floats<N> value = load<N>(a + q * channels + c);
          total[which] += value;
          products[which] += value * load<N>(b + q * channels + c);
        };
        int64_t q = r;
        for (; q + 2 <= last; q += 2) {
          add(q, 0);
          add(q + 1, 1);
        }
        if (q < last) add(q, 0);
        total[0] += total[1];
        products[0] += products[1];
        for (int n = 0; n < N; n++) {
          sums[c + n] += total[0][n];
          sums[channels + c + n] += products[0][n];
        }
      });
    }
    const std::lock_guard<std::mutex> lock(adding);
    for (int64_t c = 0; c < channels; c++) {
      first[c] += sums[c];
      second[c] += sums[channels + c];
    }
  });
}

// out = a * alpha + b * beta + gamma per channel; a, b, out (P, C); b only where beta is not null.
template <typename T>
void channel_affine(const T* a, const T* b, const float* alpha, const float* beta, const float* gamma, T* out,
                    int64_t rows, int64_t channels) {
  at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r += 64)
      for_vectors(channels, [&](auto lanes, int64_t c) {
        constexpr int N = decltype(lanes)::value;
        const Floats<N> factor = load<N>(alpha + c), constant = load<N>(gamma + c);
        const Floats<N> other = beta ? load<N>(beta + c) : Floats<N>{};
        for (int64_t q = r; q < std::min(end, r + 64); q++) {
          Floats<N> value = load<N>(a + q * channels + c) * factor + constant;
          if (beta) value += load<N>(b + q * channels + c) * other;
          store<N>(out + q * channels + c, value);
        }
      });
  });
}

}  // namespace

extern "C" {

// y = depthwise convolution of relu(x) with weight (C, K, K).
void depthwise_forward(const void* x, const float* weight, void* y, int64_t half, int64_t images, int64_t height,
                       int64_t width, int64_t channels, int64_t kernel, int64_t stride) {
  with_type(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    windows_forward(static_cast<const T*>(x), weight, static_cast<T*>(y), images,
                    Shape(height, width, channels, kernel, stride), Rectified(), Unchanged());
  });
}

// grad_x through the ReLU; grad_weight (C, K, K).
void depthwise_backward(const void* grad, const void* x, const float* weight, void* grad_x, float* grad_weight,
                        int64_t half, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t kernel,
                        int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const int64_t area = kernel * kernel;
  std::fill_n(grad_weight, channels * area, 0.f);
  std::mutex adding;
  auto run = [&](auto* type, int64_t begin, int64_t end) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_vectors(channels, [&](auto lanes, int64_t c) {
      constexpr int N = decltype(lanes)::value;
      Block padded(s.padded_height(), s.padded_width(), N), spread(s.spread_height(), s.spread_width(), N);
      const std::vector<float> taps = taps_of<N>(weight, c, area);
      std::vector<float> flipped(taps.size()), gradient(taps.size(), 0.f);
      with_window(s, [&](auto k, auto step) {
        constexpr int K = decltype(k)::value, STRIDE = decltype(step)::value;
        flip<N, K, STRIDE>(taps.data(), flipped.data());
        for (int64_t n = begin; n < end; n++) {
          const T* image = static_cast<const T*>(x) + n * s.size() + c;
          T* to = static_cast<T*>(grad_x) + n * s.size() + c;
          fill<N>(padded, image, height, width, channels, s.top, s.left, Rectified());
          fill<N>(spread, static_cast<const T*>(grad) + n * s.out_size() + c, s.out_height, s.out_width, channels,
                  s.border(), s.border(), Unchanged());
          add_tap_gradients<N, K, STRIDE>(padded, spread, gradient.data(), s);
          sum_back<N, K, STRIDE>(spread, flipped.data(), s, [&](int64_t h, int64_t w, Floats<N> sum) {
            const Floats<N> zero = {}, value = load<N>(padded.at(s.top + h, s.left + w));
            store<N>(to + (h * width + w) * channels, value > zero ? sum : zero);
          });
        }
      });
      const std::lock_guard<std::mutex> lock(adding);
      for (int64_t a = 0; a < area; a++)
        for (int n = 0; n < N; n++) grad_weight[(c + n) * area + a] += gradient[a * N + n];
    });
  };
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    with_type(half, [&](auto* type) { run(type, begin, end); });
  });
}

// y = mean of x over the window's pixels inside the image.
void average_forward(const void* x, void* y, int64_t half, int64_t images, int64_t height, int64_t width,
                     int64_t channels, int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const std::vector<float> share = shares(s);
  with_type(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    windows_forward(static_cast<const T*>(x), nullptr, static_cast<T*>(y), images, s, Unchanged(),
                    [&](auto sum, int64_t h, int64_t w) { return sum * share[h * s.out_width + w]; });
  });
}

void average_backward(const void* grad, void* grad_x, int64_t half, int64_t images, int64_t height, int64_t width,
                      int64_t channels, int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const std::vector<float> share = shares(s);
  auto run = [&](auto* type, int64_t begin, int64_t end) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_vectors(channels, [&](auto lanes, int64_t c) {
      constexpr int N = decltype(lanes)::value;
      Block spread(s.spread_height(), s.spread_width(), N);
      const std::vector<float> taps = taps_of<N>(nullptr, c, kernel * kernel);  // of 1: no need to flip them
      for (int64_t n = begin; n < end; n++) {
        T* to = static_cast<T*>(grad_x) + n * s.size() + c;
        fill<N>(spread, static_cast<const T*>(grad) + n * s.out_size() + c, s.out_height, s.out_width, channels,
                s.border(), s.border(),
                [&](auto v, int64_t h, int64_t w) { return v * share[h * s.out_width + w]; });
        with_window(s, [&](auto k, auto step) {
          constexpr int K = decltype(k)::value, STRIDE = decltype(step)::value;
          sum_back<N, K, STRIDE>(spread, taps.data(), s, [&](int64_t h, int64_t w, Floats<N> sum) {
            store<N>(to + (h * width + w) * channels, sum);
          });
        });
      }
    });
  };
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    with_type(half, [&](auto* type) { run(type, begin, end); });
  });
}

// y = (z - mean) * inverse * gamma + beta per channel, inverse = 1 / sqrt(variance + eps); z, y (P, C). The running
// statistics move towards the batch's by `momentum`.
void norm_forward(const void* z, const float* gamma, const float* beta, void* y, float* mean, float* inverse,
                  float* running_mean, float* running_variance, double momentum, double eps, int64_t half, int64_t rows,
                  int64_t channels) {
  std::vector<double> sums(channels), squares(channels);
  std::vector<float> scale(channels), shift(channels);
  with_type(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(z);
    channel_sums(from, from, rows, channels, sums.data(), squares.data());
    for (int64_t c = 0; c < channels; c++) {
      const double average = sums[c] / rows, variance = std::max(squares[c] / rows - average * average, 0.);
      mean[c] = average;
      inverse[c] = 1 / std::sqrt(variance + eps);
      scale[c] = gamma[c] * inverse[c];
      shift[c] = beta[c] - mean[c] * scale[c];
      running_mean[c] += momentum * (average - running_mean[c]);
      running_variance[c] += momentum * (variance * rows / (rows - 1) - running_variance[c]);
    }
    channel_affine<T>(from, nullptr, scale.data(), nullptr, shift.data(), static_cast<T*>(y), rows, channels);
  });
}

// dz = gamma * inverse * (g - mean(g) - z_hat mean(g z_hat)), written as one affine map of g and z; all (P, C).
void norm_backward(const void* grad, const void* z, const float* gamma, const float* mean, const float* inverse,
                   void* grad_z, float* grad_gamma, float* grad_beta, int64_t half, int64_t rows, int64_t channels) {
  std::vector<double> sums(channels), products(channels);
  std::vector<float> scale(channels), slope(channels), shift(channels);
  with_type(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from = static_cast<const T*>(grad), *input = static_cast<const T*>(z);
    channel_sums(from, input, rows, channels, sums.data(), products.data());
    for (int64_t c = 0; c < channels; c++) {
      grad_beta[c] = sums[c];
      grad_gamma[c] = (products[c] - mean[c] * sums[c]) * inverse[c];
      scale[c] = gamma[c] * inverse[c];
      slope[c] = -scale[c] * inverse[c] * grad_gamma[c] / rows;
      shift[c] = -scale[c] * grad_beta[c] / rows - slope[c] * mean[c];
    }
    channel_affine(from, input, scale.data(), slope.data(), shift.data(), static_cast<T*>(grad_z), rows, channels);
  });
}

}  // extern "C"
