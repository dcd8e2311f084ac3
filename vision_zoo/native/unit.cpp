// One separable unit of a NASNet cell on the CPU, forward and backward: ReLU, depthwise convolution (optional),
// pointwise convolution, batch norm. It exists because the general kernels spend most of a training step in
// depthwise gradients and in passes over memory; here one image at a time stays in the cache.
//
// Layout: channels last. x (N, H, W, C), depthwise (K*K, C), pointwise (C, F), y (N, H', W', F); float32; C % 8 == 0.
// Every depthwise pass runs on a copy of one image with a border of zeros, so that no loop tests for edges.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstring>
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
    default: TORCH_CHECK_VALUE(false, "depthwise kernel ", kernel, " is unknown; choose from 3, 5, 7");
  }
}

Shape shape_of(const at::Tensor& x, int64_t kernel, int64_t stride) {
  Shape s{x.size(1), x.size(2), x.size(3), 0, 0, kernel, stride, 0, 0};
  s.out_height = (s.height + stride - 1) / stride;
  s.out_width = (s.width + stride - 1) / stride;
  s.top = std::max<int64_t>((s.out_height - 1) * stride + kernel - s.height, 0) / 2;
  s.left = std::max<int64_t>((s.out_width - 1) * stride + kernel - s.width, 0) / 2;
  return s;
}

at::Tensor depthwise_forward(const at::Tensor& x, const at::Tensor& weight, const Shape& s) {
  auto out = at::empty({x.size(0), s.out_height, s.out_width, s.channels}, x.options());
  const float *in = x.data_ptr<float>(), *w = weight.data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(s.padded_height() * s.padded_width() * s.channels, 0.f);
    for (int64_t n = begin; n < end; n++) {
      pad_relu(in + n * s.height * s.width * s.channels, padded.data(), s);
      with_kernel(s.kernel, [&](auto k) {
        correlate<decltype(k)::value>(padded.data(), w, to + n * s.out_height * s.out_width * s.channels, s.out_height,
                                      s.out_width, s.padded_width(), s.channels, s.stride);
      });
    }
  });
  return out;
}

// -> gradients of x (through the ReLU) and of the weight.
std::pair<at::Tensor, at::Tensor> depthwise_backward(const at::Tensor& grad, const at::Tensor& x,
                                                     const at::Tensor& weight, const Shape& s) {
  auto grad_x = at::empty_like(x);
  const int64_t taps = s.kernel * s.kernel;
  auto flipped_tensor = weight.flip(0).contiguous();
  const int64_t chunks = at::get_num_threads();
  auto partial = at::zeros({chunks, taps, s.channels}, x.options());
  const float *g = grad.data_ptr<float>(), *in = x.data_ptr<float>(), *flipped = flipped_tensor.data_ptr<float>();
  float *gx = grad_x.data_ptr<float>(), *gw = partial.data_ptr<float>();
  const int64_t images = x.size(0), share = (images + chunks - 1) / chunks;
  // The input's gradient is the gradient, spread by the stride, correlated with the flipped kernel.
  const int64_t spread_width = s.width + s.kernel - 1, spread_height = s.height + s.kernel - 1;
  const int64_t before_h = s.kernel - 1 - s.top, before_w = s.kernel - 1 - s.left;
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(s.padded_height() * s.padded_width() * s.channels, 0.f);
    std::vector<float> spread(spread_height * spread_width * s.channels, 0.f);
    for (int64_t chunk = begin; chunk < end; chunk++)
      for (int64_t n = chunk * share; n < std::min(images, (chunk + 1) * share); n++) {
        const float* image = in + n * s.height * s.width * s.channels;
        const float* from = g + n * s.out_height * s.out_width * s.channels;
        float* to = gx + n * s.height * s.width * s.channels;
        pad_relu(image, padded.data(), s);
        for (int64_t h = 0; h < s.out_height; h++)
          for (int64_t w = 0; w < s.out_width; w++) {
            const int64_t row = h * s.stride + before_h, column = w * s.stride + before_w;
            if (row < spread_height && column < spread_width)
              std::memcpy(&spread[(row * spread_width + column) * s.channels],
                          from + (h * s.out_width + w) * s.channels, s.channels * sizeof(float));
          }
        with_kernel(s.kernel, [&](auto k) {
          weight_gradient<decltype(k)::value>(padded.data(), from, gw + chunk * taps * s.channels, s);
          correlate<decltype(k)::value>(spread.data(), flipped, to, s.height, s.width, spread_width, s.channels, 1);
        });
        const v8 zero = {};
        for (int64_t i = 0; i < s.height * s.width * s.channels; i += 8)
          store(to + i, load(image + i) > zero ? load(to + i) : zero);
      }
  });
  return {grad_x, partial.sum(0)};
}

// Sums over rows of a and a*b, per channel; (P, C) each -> (2, C). b may be a itself.
at::Tensor channel_sums(const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = a.size(0), channels = a.size(1), chunks = at::get_num_threads();
  const int64_t share = (rows + chunks - 1) / chunks, block = 256;
  auto partial = at::zeros({chunks, 2, channels}, a.options().dtype(at::kDouble));
  const float *pa = a.data_ptr<float>(), *pb = b.data_ptr<float>();
  double* sums = partial.data_ptr<double>();
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> first(channels), second(channels);  // short float sums, added up in double
    for (int64_t chunk = begin; chunk < end; chunk++)
      for (int64_t r = chunk * share; r < std::min(rows, (chunk + 1) * share); r += block) {
        std::fill(first.begin(), first.end(), 0.f);
        std::fill(second.begin(), second.end(), 0.f);
        for (int64_t q = r; q < std::min({rows, (chunk + 1) * share, r + block}); q++)
          for (int64_t c = 0; c < channels; c++) {
            first[c] += pa[q * channels + c];
            second[c] += pa[q * channels + c] * pb[q * channels + c];
          }
        for (int64_t c = 0; c < channels; c++) {
          sums[chunk * 2 * channels + c] += first[c];
          sums[(chunk * 2 + 1) * channels + c] += second[c];
        }
      }
  });
  return partial.sum(0);
}

// out = a * alpha + b * beta + gamma per channel; a, b, out (P, C).
void channel_affine(const at::Tensor& a, const at::Tensor& b, const at::Tensor& alpha, const at::Tensor& beta,
                    const at::Tensor& gamma, at::Tensor& out) {
  const int64_t channels = a.size(1);
  const float *pa = a.data_ptr<float>(), *pb = b.data_ptr<float>();
  const float *al = alpha.data_ptr<float>(), *be = beta.data_ptr<float>(), *ga = gamma.data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, a.size(0), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < channels; c++)
        to[r * channels + c] = pa[r * channels + c] * al[c] + pb[r * channels + c] * be[c] + ga[c];
  });
}

at::Tensor relu_of(const at::Tensor& x) { return at::relu(x); }

}  // namespace

// -> y, u (what the pointwise convolution read), z (before the norm), mean, 1 / std
std::vector<at::Tensor> unit_forward(at::Tensor x, std::optional<at::Tensor> depthwise, at::Tensor pointwise,
                                     at::Tensor gamma, at::Tensor beta, int64_t kernel, int64_t stride, double eps) {
  TORCH_CHECK_VALUE(x.size(3) % 8 == 0 && x.is_contiguous(), "the native unit needs channels in multiples of 8");
  at::Tensor u = depthwise ? depthwise_forward(x, *depthwise, shape_of(x, kernel, stride)) : relu_of(x);
  auto z = at::mm(u.view({-1, u.size(3)}), pointwise);
  const double rows = z.size(0);
  auto sums = channel_sums(z, z);
  auto mean = sums[0] / rows;
  auto variance = (sums[1] / rows - mean * mean).clamp_min(0);
  auto inverse = (variance + eps).rsqrt();
  auto scale = gamma * inverse.to(at::kFloat);
  auto shift = beta - mean.to(at::kFloat) * scale;
  auto y = at::empty_like(z);
  auto zeros = at::zeros_like(scale);
  channel_affine(z, z, scale, zeros, shift, y);
  return {y.view({x.size(0), u.size(1), u.size(2), z.size(1)}), u, z, mean.to(at::kFloat), inverse.to(at::kFloat),
          variance.to(at::kFloat)};
}

// -> gradients of x, depthwise (or an empty tensor), pointwise, gamma, beta
std::vector<at::Tensor> unit_backward(at::Tensor grad, at::Tensor x, at::Tensor u, at::Tensor z, at::Tensor mean,
                                      at::Tensor inverse, std::optional<at::Tensor> depthwise, at::Tensor pointwise,
                                      at::Tensor gamma, int64_t kernel, int64_t stride) {
  auto g = grad.reshape({-1, z.size(1)}).contiguous();
  auto sums = channel_sums(g, z).to(at::kFloat);
  const double rows = z.size(0);
  auto grad_beta = sums[0];
  auto grad_gamma = (sums[1] - mean * sums[0]) * inverse;
  // dz = gamma / std * (g - mean(g) - z_hat mean(g z_hat)), written as one affine map of g and z
  auto alpha = gamma * inverse;
  auto slope = -alpha * inverse * grad_gamma / rows;
  auto offset = -alpha * grad_beta / rows - slope * mean;
  auto grad_z = at::empty_like(z);
  channel_affine(g, z, alpha, slope, offset, grad_z);
  auto grad_pointwise = at::mm(u.view({-1, u.size(3)}).t(), grad_z);
  auto grad_u = at::mm(grad_z, pointwise.t()).view(u.sizes());
  if (depthwise) {
    auto [grad_x, grad_depthwise] = depthwise_backward(grad_u, x, *depthwise, shape_of(x, kernel, stride));
    return {grad_x, grad_depthwise, grad_pointwise, grad_gamma, grad_beta};
  }
  return {at::threshold_backward(grad_u, u, 0), at::Tensor(), grad_pointwise, grad_gamma, grad_beta};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("unit_forward", &unit_forward, py::call_guard<py::gil_scoped_release>());
  m.def("unit_backward", &unit_backward, py::call_guard<py::gil_scoped_release>());
}
