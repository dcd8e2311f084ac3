// What a NASNet's training spends its time in on a CPU: separable units (ReLU, depthwise convolution where there is
// one, pointwise convolution, batch norm), average pools, factorised reductions; forward and backward. The general
// kernels are slow at depthwise gradients and pass over memory often. Here a vector of channels of one image at a time
// stays in the first-level cache. The products are torch's.
//
// Layout: channels last, so x is (N, H, W, C) and y (N, H', W', C); float or bfloat16 (`half`). Weights, statistics,
// sums and what registers hold are float.
//
// Plain C functions over raw pointers, called through ctypes: no binding library, and it compiles in seconds.
// Threads are torch's own (at::parallel_for), so that its setting of their number holds here too.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <type_traits>
#include <vector>

#include "channels.hpp"
#include "images.hpp"

namespace {

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

template <typename T>
void rectify(const T* x, T* y, int64_t count) {
  at::parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
    for_vectors(end, [&](auto lanes, int64_t i) { store<lanes>(y + i, Rectified()(load<lanes>(x + i), 0, 0)); }, begin);
  });
}

// grad = grad where y > 0, else 0.
template <typename T>
void rectify_gradient(const T* y, T* grad, int64_t count) {
  at::parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
    auto rest = [&](auto lanes, int64_t i) {
      const Floats<lanes> zero = {}, value = load<lanes>(grad + i);
      store<lanes>(grad + i, load<lanes>(y + i) > zero ? value : zero);
    };
    for_vectors(end, rest, begin);
  });
}

// A matrix in the caller's memory.
template <typename T>
at::Tensor matrix(const T* data, int64_t rows, int64_t columns) {
  constexpr auto type = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;
  return at::from_blob(const_cast<T*>(data), {rows, columns}, at::TensorOptions().dtype(type));
}

}  // namespace

extern "C" {

// x (N, H, W, C) -> y (N, H', W', F), and for the backward pass u, what the pointwise convolution reads, and z, what it
// gives. depthwise (C, K, K), null for a unit without; pointwise (F, C), as x is. The others are of Norm.
void unit_forward(const void* x, const float* depthwise, const void* pointwise, const float* gamma, const float* beta,
                  void* u, void* z, void* y, float* mean, float* inverse, float* running_mean, float* running_variance,
                  double momentum, double eps, int64_t half, int64_t images, int64_t height, int64_t width,
                  int64_t channels, int64_t filters, int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const int64_t rows = images * s.out_height * s.out_width;
  with_type(half, [&]<typename T>(T*) {
    const at::Tensor weight = matrix(static_cast<const T*>(pointwise), filters, channels);
    std::vector<double> sums(filters), squares(filters);
    const T *from = static_cast<const T*>(x), *given = static_cast<const T*>(z);
    if (depthwise)
      windows_forward(from, pack_taps(depthwise, channels, kernel * kernel), static_cast<T*>(u), images, s, Rectified(),
                      Unchanged());
    else
      rectify(from, static_cast<T*>(u), images * s.size());
    at::Tensor product = matrix(given, rows, filters);
    at::mm_out(product, matrix(static_cast<const T*>(u), rows, channels), weight.t());
    add_channel_sums(given, filters, given, rows, filters, sums.data(), squares.data());
    const Norm norm{gamma, beta, mean, inverse, running_mean, running_variance, momentum, eps};
    normalise(given, sums, squares, norm, static_cast<T*>(y), rows, filters);
  });
}

// The gradient of y, its pixels `pitch` apart, -> those of x, depthwise (C, K, K), pointwise (F, C), gamma and beta.
void unit_backward(const void* grad, const void* x, const void* u, const void* z, const float* depthwise,
                   const void* pointwise, const float* gamma, const float* mean, const float* inverse, void* grad_x,
                   float* grad_depthwise, float* grad_pointwise, float* grad_gamma, float* grad_beta, int64_t half,
                   int64_t pitch, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t filters,
                   int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const int64_t rows = images * s.out_height * s.out_width;
  with_type(half, [&]<typename T>(T*) {
    const T *given = static_cast<const T*>(grad), *from = static_cast<const T*>(z);
    const at::Tensor inputs = matrix(static_cast<const T*>(u), rows, channels);
    const at::Tensor grad_z = at::empty({rows, filters}, inputs.options());
    const NormGradient norm(given, pitch, from, gamma, mean, inverse, grad_gamma, grad_beta, rows, filters);
    norm.apply(given, pitch, from, static_cast<T*>(grad_z.data_ptr()), rows);
    matrix(grad_pointwise, filters, channels).copy_(at::mm(grad_z.t(), inputs));
    at::Tensor grad_u = depthwise ? at::empty_like(inputs) : matrix(static_cast<T*>(grad_x), rows, channels);
    at::mm_out(grad_u, grad_z, matrix(static_cast<const T*>(pointwise), filters, channels));
    if (depthwise) {
      DepthwiseGradient gradient(depthwise, s);
      gradient.add(static_cast<const T*>(grad_u.data_ptr()), static_cast<const T*>(x), static_cast<T*>(grad_x), images);
      gradient.finish(grad_depthwise);
    } else {
      rectify_gradient(static_cast<const T*>(u), static_cast<T*>(grad_x), images * s.size());
    }
  });
}

// Batch norm of z (P, C) -> y; the others are of Norm.
void norm_forward(const void* z, const float* gamma, const float* beta, void* y, float* mean, float* inverse,
                  float* running_mean, float* running_variance, double momentum, double eps, int64_t half, int64_t rows,
                  int64_t channels) {
  const Norm norm{gamma, beta, mean, inverse, running_mean, running_variance, momentum, eps};
  with_type(half, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(z);
    std::vector<double> sums(channels), squares(channels);
    add_channel_sums(from, channels, from, rows, channels, sums.data(), squares.data());
    normalise(from, sums, squares, norm, static_cast<T*>(y), rows, channels);
  });
}

// The rows of grad are `pitch` apart.
void norm_backward(const void* grad, const void* z, const float* gamma, const float* mean, const float* inverse,
                   void* grad_z, float* grad_gamma, float* grad_beta, int64_t half, int64_t pitch, int64_t rows,
                   int64_t channels) {
  with_type(half, [&]<typename T>(T*) {
    const T *from = static_cast<const T*>(grad), *input = static_cast<const T*>(z);
    const NormGradient norm(from, pitch, input, gamma, mean, inverse, grad_gamma, grad_beta, rows, channels);
    norm.apply(from, pitch, input, static_cast<T*>(grad_z), rows);
  });
}

// y = mean of x over the window's pixels inside the image.
void average_forward(const void* x, void* y, int64_t half, int64_t images, int64_t height, int64_t width,
                     int64_t channels, int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const std::vector<float> share = shares(s), ones(channels * kernel * kernel, 1.f);
  with_type(half, [&]<typename T>(T*) {
    windows_forward(static_cast<const T*>(x), ones, static_cast<T*>(y), images, s, Unchanged(),
                    [&](auto sum, int64_t h, int64_t w) { return sum * share[h * s.out_width + w]; });
  });
}

// The pixels of grad are `pitch` apart.
void average_backward(const void* grad, void* grad_x, int64_t half, int64_t pitch, int64_t images, int64_t height,
                      int64_t width, int64_t channels, int64_t kernel, int64_t stride) {
  const Shape s(height, width, channels, kernel, stride);
  const std::vector<float> share = shares(s), ones(WIDEST * kernel * kernel, 1.f);
  with_type(half, [&]<typename T>(T*) {
    for_images<Backward>(images, s, [&](int64_t n, auto lanes, int64_t c, auto& scratch) {
      constexpr int N = lanes;
      fill<N>(scratch.spread, static_cast<const T*>(grad) + n * s.out_height * s.out_width * pitch + c, s.out_height,
              s.out_width, pitch, s.border(), s.border(),
              [&](Floats<N> v, int64_t h, int64_t w) { return v * share[h * s.out_width + w]; });
      with_window(s, [&](auto k, auto step) { sum_back<N, k, step>(scratch.spread, ones.data(), s, scratch.sums); });
      drain<N>(scratch.sums, static_cast<T*>(grad_x) + n * s.size() + c, height, width, channels, Unchanged());
    });
  });
}

// out (P, C) = the sum of `count` tensors (P, C), the rows of each so many elements apart as `pitches` says.
void sum_tensors(const void* const* tensors, const int64_t* pitches, int64_t count, void* out, int64_t half,
                 int64_t rows, int64_t channels) {
  with_type(half, [&]<typename T>(T*) {
    at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        for_vectors(channels, [&](auto lanes, int64_t c) {
          constexpr int N = lanes;
          Floats<N> sum = {};
          for (int64_t t = 0; t < count; t++) sum += load<N>(static_cast<const T*>(tensors[t]) + r * pitches[t] + c);
          store<N>(static_cast<T*>(out) + r * channels + c, sum);
        });
    });
  });
}

// even, odd (N, ceil(H/2), ceil(W/2), C): relu of every second pixel of x, from the first on and from the one right of
// and below it; zeros beyond the edge.
void halve_forward(const void* x, void* even, void* odd, int64_t half, int64_t images, int64_t height, int64_t width,
                   int64_t channels) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  with_type(half, [&]<typename T>(T*) {
    at::parallel_for(0, images * rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        for (int64_t w = 0; w < columns; w++) {
          const int64_t h = r % rows, to = (r * columns + w) * channels;
          const T* from = static_cast<const T*>(x) + ((r / rows * height + 2 * h) * width + 2 * w) * channels;
          const bool inside = 2 * h + 1 < height && 2 * w + 1 < width;
          for_vectors(channels, [&](auto lanes, int64_t c) {
            const T* shifted = from + (width + 1) * channels + c;
            store<lanes>(static_cast<T*>(even) + to + c, Rectified()(load<lanes>(from + c), 0, 0));
            store<lanes>(static_cast<T*>(odd) + to + c,
                         inside ? Rectified()(load<lanes>(shifted), 0, 0) : Floats<lanes>{});
          });
        }
    });
  });
}

// The gradients of even and odd -> that of x, zero where neither took a pixel.
void halve_backward(const void* grad_even, const void* grad_odd, const void* even, const void* odd, void* grad_x,
                    int64_t half, int64_t images, int64_t height, int64_t width, int64_t channels) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  with_type(half, [&]<typename T>(T*) {
    at::parallel_for(0, images * height, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        for (int64_t w = 0; w < width; w++) {
          const int64_t h = r % height, from = ((r / height * rows + h / 2) * columns + w / 2) * channels;
          const bool taken = h % 2 == w % 2;
          const T* grad = static_cast<const T*>(h % 2 ? grad_odd : grad_even) + from;
          const T* value = static_cast<const T*>(h % 2 ? odd : even) + from;
          for_vectors(channels, [&](auto lanes, int64_t c) {
            Floats<lanes> result = {};
            if (taken) result = load<lanes>(value + c) > result ? load<lanes>(grad + c) : result;
            store<lanes>(static_cast<T*>(grad_x) + (r * width + w) * channels + c, result);
          });
        }
    });
  });
}

}  // extern "C"
