// One separable unit of a NASNet cell on the CPU, forward and backward: ReLU, depthwise convolution (optional),
// pointwise convolution, batch norm. It exists because the general kernels spend most of a training step in
// depthwise gradients and in passes over memory; here one image at a time stays in the cache.
//
// Layout: channels last. x (N, H, W, C), depthwise (K*K, C), pointwise (C, F), y (N, H', W', F); float32; C % 8 == 0.
// Every depthwise pass runs on a copy of one image with a border of zeros, so that no loop tests for edges.

// Plain C functions over raw pointers, called through ctypes: no binding library, and it compiles in seconds.
// Threads are torch's own (at::parallel_for), so that its setting of their number holds here too.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

typedef float v8 __attribute__((vector_size(32), aligned(4)));

inline v8 load(const float* p) { return *reinterpret_cast<const v8*>(p); }
inline void store(float* p, v8 v) { *reinterpret_cast<v8*>(p) = v; }

struct Shape {
  int64_t height, width, channels;          // of the input
  int64_t out_height, out_width;            // of the output
  int64_t kernel, stride, top, left;        // 'SAME' padding before the image
  int64_t padded_height() const { return (out_height - 1) * stride + kernel; }
  int64_t padded_width() const { return (out_width - 1) * stride + kernel; }
  // A row or column that no window reaches (stride 2) has no place in the padded copy.
  int64_t rows() const { return std::min(height, padded_height() - top); }
  int64_t columns() const { return std::min(width, padded_width() - left); }
};

// padded (padded_height, padded_width, C) <- relu(image); the border stays zero from the buffer's creation.
void pad_relu(const float* image, float* padded, const Shape& s) {
  const v8 zero = {};
  for (int64_t h = 0; h < s.rows(); h++) {
    const float* from = image + h * s.width * s.channels;
    float* to = padded + ((h + s.top) * s.padded_width() + s.left) * s.channels;
    for (int64_t i = 0; i < s.columns() * s.channels; i += 8) {
      v8 x = load(from + i);
      store(to + i, x > zero ? x : zero);
    }
  }
}

// out (out_height, out_width, C) = sum over the window of padded * weight; TILE outputs of a row stay in registers.
template <int K, int TILE>
void correlate_tile(const float* window, const float* weight, float* out, int64_t row, int64_t channels, int64_t step) {
  v8 sum[TILE] = {};
  for (int i = 0; i < K; i++)
    for (int j = 0; j < K; j++) {
      const v8 w = load(weight + (i * K + j) * channels);
      const float* x = window + i * row + j * channels;
      for (int t = 0; t < TILE; t++) sum[t] += load(x + t * step) * w;
    }
  for (int t = 0; t < TILE; t++) store(out + t * channels, sum[t]);
}

template <int K>
void correlate(const float* padded, const float* weight, float* out, int64_t out_height, int64_t out_width,
               int64_t padded_width, int64_t channels, int64_t stride) {
  const int64_t row = padded_width * channels, step = stride * channels;
  for (int64_t h = 0; h < out_height; h++)
    for (int64_t c = 0; c < channels; c += 8) {
      const float* window = padded + h * stride * row + c;
      float* to = out + h * out_width * channels + c;
      int64_t w = 0;
      for (; w + 8 <= out_width; w += 8)
        correlate_tile<K, 8>(window + w * step, weight + c, to + w * channels, row, channels, step);
      for (; w < out_width; w++)
        correlate_tile<K, 1>(window + w * step, weight + c, to + w * channels, row, channels, step);
    }
}

// grad_weight (K*K, C) += sum over positions of padded * grad.
template <int K>
void weight_gradient(const float* padded, const float* grad, float* grad_weight, const Shape& s) {
  const int64_t row = s.padded_width() * s.channels, step = s.stride * s.channels;
  for (int64_t c = 0; c < s.channels; c += 8)
    for (int i = 0; i < K; i++) {
      v8 even[K] = {}, odd[K] = {};  // two sums a tap hide the latency of the multiply-add
      for (int64_t h = 0; h < s.out_height; h++) {
        const float* x = padded + (h * s.stride + i) * row + c;
        const float* g = grad + h * s.out_width * s.channels + c;
        int64_t w = 0;
        for (; w + 2 <= s.out_width; w += 2) {
          const v8 g0 = load(g + w * s.channels), g1 = load(g + (w + 1) * s.channels);
          for (int j = 0; j < K; j++) {
            even[j] += load(x + w * step + j * s.channels) * g0;
            odd[j] += load(x + (w + 1) * step + j * s.channels) * g1;
          }
        }
        for (; w < s.out_width; w++) {
          const v8 g0 = load(g + w * s.channels);
          for (int j = 0; j < K; j++) even[j] += load(x + w * step + j * s.channels) * g0;
        }
      }
      for (int j = 0; j < K; j++) {
        float* to = grad_weight + (i * K + j) * s.channels + c;
        store(to, load(to) + even[j] + odd[j]);
      }
    }
}

template <typename Body>
void with_kernel(int64_t kernel, Body body) {
  switch (kernel) {
    case 3: body(std::integral_constant<int, 3>()); break;
    case 5: body(std::integral_constant<int, 5>()); break;
    case 7: body(std::integral_constant<int, 7>()); break;
    default: assert(false && "the caller checks for 3, 5 and 7");
  }
}

Shape shape_of(int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride) {
  Shape s{height, width, channels, 0, 0, kernel, stride, 0, 0};
  s.out_height = (s.height + stride - 1) / stride;
  s.out_width = (s.width + stride - 1) / stride;
  s.top = std::max<int64_t>((s.out_height - 1) * stride + kernel - s.height, 0) / 2;
  s.left = std::max<int64_t>((s.out_width - 1) * stride + kernel - s.width, 0) / 2;
  return s;
}

}  // namespace

extern "C" {

int64_t threads() { return at::get_num_threads(); }

// out (N, H', W', C) = depthwise convolution of relu(x) (N, H, W, C) with weight (K*K, C).
void depthwise_forward(const float* x, const float* weight, float* out, int64_t images, int64_t height, int64_t width,
                       int64_t channels, int64_t kernel, int64_t stride) {
  const Shape s = shape_of(height, width, channels, kernel, stride);
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(s.padded_height() * s.padded_width() * s.channels, 0.f);
    for (int64_t n = begin; n < end; n++) {
      pad_relu(x + n * s.height * s.width * s.channels, padded.data(), s);
      with_kernel(s.kernel, [&](auto k) {
        correlate<decltype(k)::value>(padded.data(), weight, out + n * s.out_height * s.out_width * s.channels,
                                      s.out_height, s.out_width, s.padded_width(), s.channels, s.stride);
      });
    }
  });
}

// grad_x (N, H, W, C), through the ReLU; grad_weight (threads, K*K, C), zero on entry, to be summed by the caller.
// The input's gradient is the gradient, spread by the stride, correlated with the flipped kernel.
void depthwise_backward(const float* grad, const float* x, const float* flipped, float* grad_x, float* grad_weight,
                        int64_t chunks, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t kernel,
                        int64_t stride) {
  const Shape s = shape_of(height, width, channels, kernel, stride);
  const int64_t share = (images + chunks - 1) / chunks;
  const int64_t spread_width = s.width + s.kernel - 1, spread_height = s.height + s.kernel - 1;
  const int64_t before_h = s.kernel - 1 - s.top, before_w = s.kernel - 1 - s.left;
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(s.padded_height() * s.padded_width() * s.channels, 0.f);
    std::vector<float> spread(spread_height * spread_width * s.channels, 0.f);
    const v8 zero = {};
    for (int64_t chunk = begin; chunk < end; chunk++)
      for (int64_t n = chunk * share; n < std::min(images, (chunk + 1) * share); n++) {
        const float* image = x + n * s.height * s.width * s.channels;
        const float* from = grad + n * s.out_height * s.out_width * s.channels;
        float* to = grad_x + n * s.height * s.width * s.channels;
        pad_relu(image, padded.data(), s);
        for (int64_t h = 0; h < s.out_height; h++)
          for (int64_t w = 0; w < s.out_width; w++) {
            const int64_t row = h * s.stride + before_h, column = w * s.stride + before_w;
            if (row < spread_height && column < spread_width)
              std::memcpy(&spread[(row * spread_width + column) * s.channels],
                          from + (h * s.out_width + w) * s.channels, s.channels * sizeof(float));
          }
        with_kernel(s.kernel, [&](auto k) {
          weight_gradient<decltype(k)::value>(padded.data(), from, grad_weight + chunk * s.kernel * s.kernel * s.channels, s);
          correlate<decltype(k)::value>(spread.data(), flipped, to, s.height, s.width, spread_width, s.channels, 1);
        });
        for (int64_t i = 0; i < s.height * s.width * s.channels; i += 8)
          store(to + i, load(image + i) > zero ? load(to + i) : zero);
      }
  });
}

// sums (chunks, 2, C), zero on entry: per channel the sums of a and of a * b over rows; a, b (P, C).
void channel_sums(const float* a, const float* b, double* sums, int64_t chunks, int64_t rows, int64_t channels) {
  const int64_t share = (rows + chunks - 1) / chunks, block = 256;
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> first(channels), second(channels);  // short float sums, added up in double
    for (int64_t chunk = begin; chunk < end; chunk++)
      for (int64_t r = chunk * share; r < std::min(rows, (chunk + 1) * share); r += block) {
        std::fill(first.begin(), first.end(), 0.f);
        std::fill(second.begin(), second.end(), 0.f);
        for (int64_t q = r; q < std::min({rows, (chunk + 1) * share, r + block}); q++)
          for (int64_t c = 0; c < channels; c++) {
            first[c] += a[q * channels + c];
            second[c] += a[q * channels + c] * b[q * channels + c];
          }
        for (int64_t c = 0; c < channels; c++) {
          sums[chunk * 2 * channels + c] += first[c];
          sums[(chunk * 2 + 1) * channels + c] += second[c];
        }
      }
  });
}

// out = a * alpha + b * beta + gamma per channel; a, b, out (P, C).
void channel_affine(const float* a, const float* b, const float* alpha, const float* beta, const float* gamma,
                    float* out, int64_t rows, int64_t channels) {
  at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < channels; c++)
        out[r * channels + c] = a[r * channels + c] * alpha[c] + b[r * channels + c] * beta[c] + gamma[c];
  });
}

}  // extern "C"
